/*
 * Locks and who holds them (needs --file-locks): flock through a duplicate and in a child, an OFD
 * lock that only a child has left, POSIX read locks of parent and child on one range, a child that
 * waits for its parent's lock, two shared leases of one file in two processes with a signal of their
 * own, locks on a deleted file.
 */
#include "wl.h"
#include <sys/file.h>
static volatile char *state;
static int ofd, posix, deleted;
static int broken;
static int range(int fd, int cmd, int type, long start)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 10 };
	return fcntl(fd, cmd, &l);
}
static int seen(int fd, int cmd, long start)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = 10 };
	MUST(!fcntl(fd, cmd, &l));
	return l.l_type;
}
static void on_break(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	broken = info->si_fd;
}
static int lease(int sig)
{
	struct sigaction sa = { .sa_sigaction = on_break, .sa_flags = SA_SIGINFO };
	int fd = open("leased", O_RDONLY);
	MUST(fd >= 0 && !sigaction(sig, &sa, NULL));
	MUST(!fcntl(fd, F_SETLEASE, F_RDLCK) && !fcntl(fd, F_SETSIG, sig));
	return fd;
}
static void keeper(void *a)
{
	(void)a;
	int fd = lease(SIGRTMIN + 3);
	MUST(!range(posix, F_SETLK, F_RDLCK, 100) && !range(deleted, F_SETLK, F_WRLCK, 0));
	state[0] = 1;
	while (!broken)
		usleep(1000);
	MUST(broken == fd && !fcntl(fd, F_SETLEASE, F_UNLCK));
	state[0] = 2;
}
static void waiter(void *a)
{
	(void)a;
	int fd = open("posix", O_RDWR);
	state[1] = 1;
	MUST(!range(fd, F_SETLKW, F_WRLCK, 0));
	state[1] = 2;
}
static void until(int at, char value)
{
	while (state[at] != value)
		usleep(1000);
}
static int stranger(const char *path)
{
	int fd = open(path, O_RDWR), r = flock(fd, LOCK_SH | LOCK_NB);
	close(fd);
	return !r;
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	state = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	close(open("leased", O_RDWR | O_CREAT, 0600));
	int held = open("flock", O_RDWR | O_CREAT, 0600), other = dup(held), again = open("flock", O_RDWR);
	ofd = open("ofd", O_RDWR | O_CREAT, 0600);
	posix = open("posix", O_RDWR | O_CREAT, 0600);
	deleted = open("deleted", O_RDWR | O_CREAT, 0600);
	MUST(!flock(other, LOCK_EX) && !range(ofd, F_OFD_SETLK, F_WRLCK, 0));
	MUST(!range(posix, F_SETLK, F_WRLCK, 0) && !range(posix, F_SETLK, F_RDLCK, 100));
	MUST(!unlink("deleted") && !range(deleted, F_OFD_SETLK, F_RDLCK, 50));
	int leased = lease(SIGRTMIN + 2);
	pid_t kid = wl_fork(keeper, NULL), waits = wl_fork(waiter, NULL);
	until(0, 1);
	until(1, 1);
	close(ofd);
	close(held);
	wl_settle(waits);
	wl_wait();
	/* The duplicate has the lock, and gives it up for all. */
	MUST(flock(again, LOCK_SH | LOCK_NB) < 0 && !stranger("flock"));
	int look = open("ofd", O_RDWR);
	MUST(seen(look, F_OFD_GETLK, 0) == F_WRLCK);
	MUST(seen(deleted, F_GETLK, 0) == F_WRLCK && seen(posix, F_GETLK, 100) == F_RDLCK);
	MUST(range(deleted, F_SETLK, F_WRLCK, 50) < 0 && !range(deleted, F_OFD_SETLK, F_UNLCK, 50));
	MUST(!flock(other, LOCK_UN) && stranger("flock"));
	/* Who waits gets it when its holder lets go. */
	MUST(state[1] == 1 && !range(posix, F_SETLK, F_UNLCK, 0));
	until(1, 2);
	/* An open for writing breaks both leases; each holder hears of its own. */
	MUST(open("leased", O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK);
	until(0, 2);
	MUST(broken == leased && !fcntl(leased, F_SETLEASE, F_UNLCK));
	MUST(open("leased", O_WRONLY | O_NONBLOCK) >= 0);
	kill(kid, SIGKILL);
	MUST(waitpid(kid, NULL, 0) == kid && seen(posix, F_GETLK, 100) == F_UNLCK);
	MUST(seen(look, F_OFD_GETLK, 0) == F_WRLCK);
	kill(waits, SIGKILL);
	MUST(waitpid(waits, NULL, 0) == waits && seen(look, F_OFD_GETLK, 0) == F_UNLCK);
	wl_nkids = 0;
	wl_ok();
}
