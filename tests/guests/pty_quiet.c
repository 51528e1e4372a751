/* A pseudo terminal without waiting input: settings, window, and data through it afterwards. */
#include "wl.h"
#include <sys/ioctl.h>
#include <termios.h>
int main(int argc, char **argv)
{
	char name[64], b[16];
	struct winsize ws = { .ws_row = 33, .ws_col = 101 }, now;
	struct termios t, u;
	wl_start(argc, argv);
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	MUST(m >= 0 && grantpt(m) == 0 && unlockpt(m) == 0 && ptsname_r(m, name, sizeof(name)) == 0);
	int s = open(name, O_RDWR | O_NOCTTY);
	MUST(s >= 0 && tcgetattr(s, &t) == 0);
	cfmakeraw(&t);
	t.c_cc[VMIN] = 3;
	MUST(tcsetattr(s, TCSANOW, &t) == 0 && ioctl(m, TIOCSWINSZ, &ws) == 0);
	wl_wait();
	MUST(tcgetattr(s, &u) == 0 && u.c_lflag == t.c_lflag && u.c_iflag == t.c_iflag &&
	     u.c_oflag == t.c_oflag && u.c_cflag == t.c_cflag && u.c_cc[VMIN] == 3);
	MUST(ioctl(s, TIOCGWINSZ, &now) == 0 && now.ws_row == 33 && now.ws_col == 101);
	MUST(write(m, "down", 4) == 4 && read(s, b, 4) == 4 && !memcmp(b, "down", 4));
	MUST(write(s, "up", 2) == 2 && read(m, b, 2) == 2 && !memcmp(b, "up", 2));
	wl_ok();
}
