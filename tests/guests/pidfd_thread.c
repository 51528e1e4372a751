/* Pidfds of threads (Linux 6.9): of one's own, of a child's, of a leader, of one that is dead. */
#include "wl.h"
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif
static volatile pid_t own, of_child;
static volatile int *stop;
static int open_thread(pid_t tid, int flags)
{
	int fd = syscall(SYS_pidfd_open, tid, PIDFD_THREAD | flags);
	if (fd < 0 && errno == EINVAL) {
		printf("ready\nSKIPPED: this kernel has no pidfds of threads\n");
		wl_ok();
	}
	MUST(fd >= 0);
	return fd;
}
static int pid_of(int fd)
{
	char p[64], *s;
	int v = -99;
	snprintf(p, sizeof(p), "/proc/self/fdinfo/%d", fd);
	if ((s = strstr(slurp(p), "\nPid:")))
		sscanf(s, "\nPid: %d", &v);
	return v;
}
static void *thread(void *at)
{
	*(volatile pid_t *)at = gettid();
	while (!*stop)
		usleep(1000);
	return NULL;
}
static void *short_lived(void *at)
{
	*(int *)at = open_thread(gettid(), 0);
	return NULL;
}
static void child(void *at)
{
	pthread_t t;
	MUST(!pthread_create(&t, NULL, thread, at));
}
static int over(int fd, int wait)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	return poll(&p, 1, wait) == 1;
}
int main(int argc, char **argv)
{
	pthread_t t, gone;
	int dead = -1;
	wl_start(argc, argv);
	char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stop = (void *)shared;
	volatile pid_t *kid_thread = (void *)(shared + 64);
	MUST(!pthread_create(&t, NULL, thread, (void *)&own));
	MUST(!pthread_create(&gone, NULL, short_lived, &dead) && !pthread_join(gone, NULL));
	pid_t kid = wl_fork(child, (void *)kid_thread);
	while (!own || !*kid_thread)
		usleep(1000);
	of_child = *kid_thread;
	int mine = open_thread(own, 0), his = open_thread(of_child, O_NONBLOCK), leader = open_thread(kid, 0);
	while (!over(dead, 1000))
		;
	wl_wait();
	MUST(pid_of(mine) == own && pid_of(his) == of_child && pid_of(leader) == kid && pid_of(dead) == -1);
	MUST(fcntl(mine, F_GETFL) & PIDFD_THREAD && fcntl(his, F_GETFL) & O_NONBLOCK);
	MUST(!over(mine, 0) && !over(his, 0) && !over(leader, 0));
	MUST(!syscall(SYS_pidfd_send_signal, mine, 0, NULL, 0));
	*stop = 1;
	MUST(over(mine, 5000) && over(his, 5000) && !over(leader, 0));
	MUST(!pthread_join(t, NULL));
	wl_ok();
}
