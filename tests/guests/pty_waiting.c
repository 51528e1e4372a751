/* Terminals with something to read at both ends: lines, an end of file and half a line typed into
 * one that edits lines; raw input; output for the master, more than its queue holds; a slave that
 * was hung up; packet mode; locked modes; a pair whose slave is closed. */
#include "wl.h"
#include <sys/ioctl.h>
#include <termios.h>
static int pair(int *slave)
{
	int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	MUST(fd >= 0 && !grantpt(fd) && !unlockpt(fd));
	MUST((*slave = open(ptsname(fd), O_RDWR | O_NOCTTY)) >= 0);
	return fd;
}
static void quiet(int s, int canonical)
{
	struct termios t;
	MUST(!tcgetattr(s, &t));
	t.c_lflag &= ~(ECHO | ICANON);
	t.c_oflag &= ~OPOST;
	if (canonical)
		t.c_lflag |= ICANON;
	else
		t.c_lflag &= ~ISIG, t.c_iflag = 0, t.c_cc[VMIN] = 40;
	MUST(!tcsetattr(s, TCSANOW, &t));
}
/* A read that must give exactly these bytes; NULL for nothing yet. */
static void expect(int fd, const char *text)
{
	char b[256];
	int n, had = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, had | O_NONBLOCK);
	n = read(fd, b, sizeof(b));
	if (!text) {
		MUST(n < 0 && errno == EAGAIN);
	} else if (n != (int)strlen(text) || memcmp(b, text, n)) {
		fail("read %d bytes '%.*s', not '%s'", n, n > 0 ? n : 0, b, text);
	}
	fcntl(fd, F_SETFL, had);
}
#define MUCH 9000
int main(int argc, char **argv)
{
	int lines, lines_s, raw, raw_s, out, out_s, hung, hung_s, packet, packet_s, lone, lone_s, fresh;
	struct termios lock, t;
	static unsigned char much[MUCH], got[MUCH];
	char b[64];
	int on = 1, at = 0, n;
	wl_start(argc, argv);
	lines = pair(&lines_s);
	quiet(lines_s, 1);
	MUST(write(lines, "first\nsecond\nthird\x04\x04half a l", 28) == 28);
	raw = pair(&raw_s);
	quiet(raw_s, 0);
	MUST(write(raw, "raw\r\n\x03\x04\x7f typed", 14) == 14);
	out = pair(&out_s);
	quiet(out_s, 0);
	for (int i = 0; i < MUCH; i++)
		much[i] = 'a' + i * 7 % 26;
	MUST(write(out_s, much, MUCH) == MUCH);
	hung = pair(&hung_s);
	close(hung);
	MUST(write(hung_s, "x", 1) < 0 && errno == EIO);
	packet = pair(&packet_s);
	quiet(packet_s, 0);
	MUST(!ioctl(packet, TIOCPKT, &on));
	MUST(write(packet_s, "packet", 6) == 6);
	MUST(!ioctl(packet_s, TIOCEXCL));
	memset(&lock, 0, sizeof(lock));
	lock.c_lflag = ECHO;
	MUST(!ioctl(packet_s, TIOCSLCKTRMIOS, &lock));
	lone = pair(&lone_s);
	quiet(lone_s, 0);
	MUST(write(lone_s, "last words", 10) == 10);
	close(lone_s);
	/* Nobody has opened its slave yet: a read waits for that. */
	fresh = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
	MUST(fresh >= 0);
	MUST(read(fresh, b, 1) < 0 && errno == EAGAIN);
	wl_wait();
	expect(lines_s, "first\n");
	expect(lines_s, "second\n");
	expect(lines_s, "third");
	expect(lines_s, "");
	expect(lines_s, NULL);
	MUST(write(lines, "ine\n", 4) == 4);
	expect(lines_s, "half a line\n");
	/* Fewer than VMIN: a look without waiting gives them all the same. */
	expect(raw_s, "raw\r\n\x03\x04\x7f typed");
	while (at < MUCH && (n = read(out, got + at, MUCH - at)) > 0)
		at += n;
	MUST(at == MUCH && !memcmp(much, got, MUCH));
	MUST(read(hung_s, b, 1) <= 0 && write(hung_s, "x", 1) < 0 && errno == EIO);
	MUST(read(packet, b, 64) == 7 && b[0] == 0 && !memcmp(b + 1, "packet", 6));
	MUST(!ioctl(packet_s, TIOCGEXCL, &on) && on == 1);
	MUST(!ioctl(packet_s, TIOCGLCKTRMIOS, &lock) && lock.c_lflag == ECHO);
	MUST(!tcgetattr(packet_s, &t) && !(t.c_lflag & ECHO));
	MUST(read(lone, b, 64) == 10 && !memcmp(b, "last words", 10));
	MUST(read(lone, b, 64) < 0 && errno == EIO);
	MUST(read(fresh, b, 1) < 0 && errno == EAGAIN);
	wl_ok();
}
