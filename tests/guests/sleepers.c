/* Threads in calls with a relative timeout, none of which may end: nobody has signalled them. The
 * one that asked for the rest in the place of its request (as sleep(3) does) goes on with the rest. */
#include "wl.h"
#include <linux/futex.h>
enum { SLEEPS = 1000, NAP_MS = 100 };
static struct timespec rest = { SLEEPS, 0 };
static volatile int ended, asking;
static int word;

static void none(int s) { (void)s; }

/* By hand: the number right before the call, as in most programs. */
static long call(long nr, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = 0, r9 __asm__("r9") = 0;
	long ret;
	switch (nr) {
#define CASE(n) case n: \
	__asm__ volatile("mov %[nr], %%eax\n\tsyscall" : "=a"(ret) \
		: [nr] "i"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) \
		: "rcx", "r11", "memory"); break
	CASE(SYS_nanosleep);
	CASE(SYS_poll);
	CASE(SYS_futex);
	CASE(SYS_clock_nanosleep);
	default: ret = -ENOSYS;
	}
	return ret;
}

static void *sleeps(void *unused)
{
	(void)unused;
	asking = syscall(SYS_gettid);
	long ret = call(SYS_nanosleep, (long)&rest, (long)&rest, 0, 0);
	/* Only the main thread's signal at the end may do that. */
	ended = ret == -EINTR ? 1 : 2;
	return NULL;
}

static void *waits(void *how)
{
	struct timespec time = { SLEEPS, 0 };
	struct pollfd nothing = { -1, 0, 0 };
	long t = (long)&time;
	switch ((long)how) {
	case 0: call(SYS_nanosleep, t, 0, 0, 0); break;
	case 1: call(SYS_poll, (long)&nothing, 1, SLEEPS * 1000, 0); break;
	case 2: call(SYS_futex, (long)&word, FUTEX_WAIT_PRIVATE, 0, t); break;
	case 3: call(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, t, 0); break;
	}
	fail("call %ld has ended", (long)how);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread, other;
	struct sigaction sa = { .sa_handler = none };
	struct timespec nap = { 0, NAP_MS * 1000000 };
	wl_start(argc, argv);
	sigaction(SIGUSR1, &sa, NULL);
	MUST(pthread_create(&thread, NULL, sleeps, NULL) == 0);
	for (long i = 0; i < 4; i++)
		MUST(pthread_create(&other, NULL, waits, (void *)i) == 0);
	while (!asking)
		usleep(1000);
	wl_settle(asking);
	nanosleep(&nap, NULL);
	wl_wait();
	MUST(!ended);
	while (!ended) {
		pthread_kill(thread, SIGUSR1);
		usleep(1000);
	}
	MUST(ended == 1);
	/* The nap before the dump is not slept again. */
	double left = rest.tv_sec + rest.tv_nsec / 1e9;
	MUST(left > 0 && left <= SLEEPS - NAP_MS / 1e3);
	wl_ok();
}
