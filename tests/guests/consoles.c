/* A virtual console that is the controlling terminal, with modes of its own and opened twice, the system's console and a serial line,
 * whose modes are nobody's to change. argv[2..] are those of them that there are. */
#include "wl.h"
#include <sys/ioctl.h>
#include <termios.h>
enum { SCREEN, AGAIN, FIRST_OTHER, MOST = 6 };
static struct termios modes[MOST], t; /* compared as bytes, padding too */
int main(int argc, char **argv)
{
	struct winsize size, now;
	int fd[MOST], count = FIRST_OTHER;
	MUST(argc > 2 && argc <= MOST + 1);
	wl_start(argc, argv);
	MUST((fd[SCREEN] = open(argv[2], O_RDWR | O_NOCTTY)) >= 0);
	MUST((fd[AGAIN] = open(argv[2], O_WRONLY | O_NOCTTY | O_NONBLOCK)) >= 0);
	for (int i = 3; i < argc; i++)
		MUST((fd[count++] = open(argv[i], O_RDWR | O_NOCTTY | O_NONBLOCK)) >= 0);
	MUST(!tcgetattr(fd[SCREEN], &t));
	t.c_lflag &= ~(ECHO | ICANON);
	t.c_cc[VMIN] = 7;
	t.c_cc[VINTR] = 5;
	MUST(!tcsetattr(fd[SCREEN], TCSANOW, &t));
	MUST(getsid(0) == getpid() && !ioctl(fd[SCREEN], TIOCSCTTY, 0) && tcgetpgrp(fd[SCREEN]) == getpgrp());
	for (int i = 0; i < count; i++)
		MUST(!tcgetattr(fd[i], &modes[i]));
	MUST(!ioctl(fd[SCREEN], TIOCGWINSZ, &size));
	wl_wait();
	for (int i = 0; i < count; i++) {
		MUST(!tcgetattr(fd[i], &t));
		if (memcmp(&t, &modes[i], sizeof(t)))
			fail("the modes of fd %d", fd[i]);
	}
	MUST(!ioctl(fd[SCREEN], TIOCGWINSZ, &now) && !memcmp(&now, &size, sizeof(now)));
	MUST((fcntl(fd[AGAIN], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_WRONLY | O_NONBLOCK) && !(fcntl(fd[SCREEN], F_GETFL) & O_NONBLOCK));
	MUST(tcgetsid(fd[SCREEN]) == getpid() && tcgetpgrp(fd[SCREEN]) == getpgrp());
	MUST((fd[0] = open("/dev/tty", O_RDWR)) >= 0); /* the controlling terminal */
	MUST(write(fd[AGAIN], "\r", 1) == 1 && write(fd[0], "\r", 1) == 1);
	/* it forgets a read that nobody has typed for */
	MUST(!tcflush(fd[SCREEN], TCIOFLUSH));
	wl_ok();
}
