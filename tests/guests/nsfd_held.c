/*
 * uts namespaces and who holds them: one that only descriptors hold (twice, with other flags), one
 * of a child on which the parent has a descriptor, a child of that child in it by inheritance, and
 * descriptors on the namespaces that everybody has.
 */
#include "wl.h"
#include <sys/utsname.h>
static void child(void *at)
{
	volatile char *state = at;
	struct utsname u;
	MUST(!unshare(CLONE_NEWUTS) && !sethostname("child-host", 10) && !setdomainname("", 0));
	pid_t kid = fork();
	MUST(kid >= 0);
	if (!kid)
		for (;;)
			pause();
	*state = 1;
	while (*state != 2)
		usleep(10000);
	MUST(!uname(&u) && !strcmp(u.nodename, "child-host") && !*u.domainname);
	char path[64], mine[64] = { 0 }, his[64] = { 0 };
	snprintf(path, sizeof(path), "/proc/%d/ns/uts", kid);
	MUST(readlink(path, his, 63) > 0 && readlink("/proc/self/ns/uts", mine, 63) > 0);
	MUST(!strcmp(mine, his));
	kill(kid, SIGKILL);
	*state = 3;
}
static void same(int a, int b)
{
	struct stat s, t;
	MUST(!fstat(a, &s) && !fstat(b, &t) && s.st_ino == t.st_ino);
}
int main(int argc, char **argv)
{
	char path[64];
	struct utsname u;
	wl_start(argc, argv);
	char *state = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int home = open("/proc/self/ns/uts", O_RDONLY), net = open("/proc/self/ns/net", O_RDONLY);
	MUST(home >= 0 && net >= 0);
	MUST(!unshare(CLONE_NEWUTS) && !sethostname("held-host", 9) && !setdomainname("held.domain", 11));
	int held = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);
	int again = open("/proc/self/ns/uts", O_RDONLY | O_NONBLOCK);
	int twice = dup(held);
	MUST(held >= 0 && again >= 0 && twice >= 0 && !setns(home, CLONE_NEWUTS));
	pid_t kid = wl_fork(child, state);
	while (*(volatile char *)state != 1)
		usleep(1000);
	snprintf(path, sizeof(path), "/proc/%d/ns/uts", kid);
	int other = open(path, O_RDONLY);
	MUST(other >= 0);
	wl_wait();
	same(held, again);
	same(held, twice);
	int now = open("/proc/self/ns/uts", O_RDONLY), network = open("/proc/self/ns/net", O_RDONLY);
	same(home, now);
	same(net, network);
	now = open(path, O_RDONLY);
	same(other, now);
	MUST(fcntl(again, F_GETFL) & O_NONBLOCK);
	MUST(fcntl(held, F_GETFD) == FD_CLOEXEC && fcntl(twice, F_GETFD) == 0);
	MUST(!setns(again, CLONE_NEWUTS) && !uname(&u));
	MUST(!strcmp(u.nodename, "held-host") && !strcmp(u.domainname, "held.domain"));
	MUST(!setns(other, CLONE_NEWUTS) && !uname(&u) && !strcmp(u.nodename, "child-host"));
	*state = 2;
	while (*(volatile char *)state != 3)
		usleep(1000);
	wl_ok();
}
