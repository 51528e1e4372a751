/*
 * Something that must not notice being stopped: a loop on registers, sleeps that return 0 after
 * their full time, futex waits that end by timeout only, and threads with a mix of them.
 * argv[2]: cpu, nanosleep, futex, threads (ten of them) or threads50.
 */
#include "wl.h"
#include <linux/futex.h>

#define NAP_NS 30000000l

static volatile int stop;
static volatile unsigned long rounds[64];

static long long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Registers, red zone, flags and vector registers against damage, for one short turn. */
static void spin(int me)
{
	unsigned long a = 0x0123456789abcdeful + me, b = ~a, i;
	double x = 1.0 + me;
	volatile double y = x;
	for (i = 0; i < 20000; i++) {
		__asm__ volatile("" : "+r"(a), "+r"(b), "+x"(x));
		a = (a << 7 | a >> 57);
		b = (b << 7 | b >> 57);
		if (a != ~b || x != y)
			fail("registers of thread %d", me);
	}
}

static void sleep_once(int me)
{
	struct timespec nap = { 0, NAP_NS };
	long long t = now_ns();
	int r = nanosleep(&nap, NULL);
	if (r && !wl_term)
		fail("nanosleep of thread %d", me);
	if (!r && now_ns() - t < NAP_NS)
		fail("thread %d slept %lld ns only", me, now_ns() - t);
}

static void wait_once(int me)
{
	static int word;
	struct timespec nap = { 0, NAP_NS };
	long long t = now_ns();
	long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &nap, NULL, 0);
	if (!(r == -1 && errno == ETIMEDOUT) && !(wl_term && errno == EINTR))
		fail("futex wait of thread %d returns %ld", me, r);
	if (errno == ETIMEDOUT && now_ns() - t < NAP_NS)
		fail("thread %d waited %lld ns only", me, now_ns() - t);
}

static void (*const turns[])(int) = { spin, sleep_once, wait_once };

static void *run(void *arg)
{
	int me = (int)(long)arg;
	sigset_t term;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM); /* for the first thread only: EINTR here would be a fault */
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	while (!stop) {
		turns[me % 3](me);
		rounds[me]++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t th[64];
	MUST(argc > 2);
	int kind = !strcmp(argv[2], "cpu") ? 0 : !strcmp(argv[2], "nanosleep") ? 1 : 2;
	int nthreads = !strcmp(argv[2], "threads") ? 9 : !strcmp(argv[2], "threads50") ? 49 : 0;
	wl_start(argc, argv);
	for (long i = 1; i <= nthreads; i++)
		MUST(pthread_create(&th[i], NULL, run, (void *)i) == 0);
	turns[kind](0);
	printf("ready\n");
	fflush(stdout);
	while (!wl_term) {
		turns[kind](0);
		rounds[0]++;
	}
	for (int i = 1; i <= nthreads; i++) { /* each thread still runs */
		unsigned long r = rounds[i];
		for (int n = 0; n < 10000 && rounds[i] == r; n++)
			usleep(1000);
		if (rounds[i] == r)
			fail("thread %d is stuck", i);
	}
	stop = 1;
	for (int i = 1; i <= nthreads; i++)
		MUST(pthread_join(th[i], NULL) == 0);
	wl_ok();
}
