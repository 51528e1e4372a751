/* Leases, to read and to write; OFD locks of two descriptions of one file in two processes. */
#include "wl.h"
static int fd_ofd;
static void child(void *a)
{
	(void)a;
	close(fd_ofd);
}
static int lock(int fd, int type, int start, int len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	return fcntl(fd, F_OFD_SETLK, &l);
}
static int held(int fd, int start)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = 1 };
	MUST(!fcntl(fd, F_OFD_GETLK, &l));
	return l.l_type;
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	close(open("read", O_CREAT | O_RDWR, 0600));
	close(open("write", O_CREAT | O_RDWR, 0600));
	int rd = open("read", O_RDONLY), wr = open("write", O_RDWR), dup_wr = dup(wr);
	MUST(!fcntl(rd, F_SETLEASE, F_RDLCK) && !fcntl(wr, F_SETLEASE, F_WRLCK));
	int one = open("ofd", O_CREAT | O_RDWR, 0600), two = open("ofd", O_RDWR);
	fd_ofd = one;
	MUST(!lock(one, F_WRLCK, 0, 10) && !lock(two, F_RDLCK, 20, 10));
	wl_fork(child, NULL);
	wl_wait();
	MUST(fcntl(rd, F_GETLEASE) == F_RDLCK && fcntl(wr, F_GETLEASE) == F_WRLCK);
	MUST(held(two, 5) == F_WRLCK && held(one, 25) == F_RDLCK && held(one, 5) == F_UNLCK);
	/* The lease goes with the last descriptor of its description. */
	close(wr);
	MUST(fcntl(dup_wr, F_GETLEASE) == F_WRLCK);
	close(two);
	wl_reap();
	while (wait(NULL) > 0)
		;
	wl_nkids = 0;
	MUST(held(one, 25) == F_UNLCK);
	wl_ok();
}
