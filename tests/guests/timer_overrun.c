/* Periodic POSIX timers that have overrun, as timer_getoverrun tells of the last signal taken: one
 * whose signal is the process's, one whose signal is a thread's; and none for one that was in time.
 * Their periods are so long that none expires again while the guest is dumped and restored. */
#include "wl.h"
#define HOUR 3600
enum { LATE = 5 };
static timer_t process_timer, thread_timer, in_time;
static volatile int thread_ready, stop, thread_saw = -1;

/* A timer that has expired LATE times more than once, just before its next period. */
static timer_t overrun(int notify, int signo, clockid_t clock)
{
	struct sigevent ev = { .sigev_notify = notify, .sigev_signo = signo };
	struct itimerspec spec = { .it_interval = { HOUR, 0 } };
	struct timespec now, none = { 10, 0 };
	sigset_t set;
	timer_t id;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, signo);
	MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
	if (notify == SIGEV_THREAD_ID)
		*(int *)((char *)&ev + 16) = syscall(SYS_gettid);
	MUST(timer_create(clock, &ev, &id) == 0);
	clock_gettime(clock, &now);
	/* The next expiration is in 1800 seconds. */
	spec.it_value.tv_sec = now.tv_sec + HOUR / 2 - HOUR * (LATE + 1);
	spec.it_value.tv_nsec = now.tv_nsec;
	MUST(spec.it_value.tv_sec > 0 && timer_settime(id, TIMER_ABSTIME, &spec, NULL) == 0);
	MUST(sigtimedwait(&set, &info, &none) == signo);
	MUST(info.si_overrun == LATE && timer_getoverrun(id) == LATE);
	return id;
}

static void *other(void *unused)
{
	(void)unused;
	thread_timer = overrun(SIGEV_THREAD_ID, SIGRTMIN + 3, CLOCK_REALTIME);
	thread_ready = 1;
	while (!stop)
		usleep(1000);
	thread_saw = timer_getoverrun(thread_timer);
	return NULL;
}

static void expect(timer_t id, int overrun)
{
	struct itimerspec now;
	sigset_t pending;
	MUST(timer_getoverrun(id) == overrun);
	MUST(timer_gettime(id, &now) == 0 && now.it_interval.tv_sec == HOUR);
	MUST(now.it_value.tv_sec > HOUR / 2 - 900 && now.it_value.tv_sec <= HOUR / 2);
	MUST(sigpending(&pending) == 0);
	MUST(!sigismember(&pending, SIGRTMIN + 2) && !sigismember(&pending, SIGRTMIN + 3));
}

int main(int argc, char **argv)
{
	pthread_t thread;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 4 };
	struct itimerspec spec = { { HOUR, 0 }, { HOUR / 2, 0 } };
	wl_start(argc, argv);
	process_timer = overrun(SIGEV_SIGNAL, SIGRTMIN + 2, CLOCK_REALTIME);
	MUST(timer_create(CLOCK_MONOTONIC, &ev, &in_time) == 0);
	MUST(timer_settime(in_time, 0, &spec, NULL) == 0);
	MUST(pthread_create(&thread, NULL, other, NULL) == 0);
	while (!thread_ready)
		usleep(1000);
	wl_wait();
	expect(process_timer, LATE);
	expect(thread_timer, LATE);
	expect(in_time, 0);
	stop = 1;
	MUST(pthread_join(thread, NULL) == 0 && thread_saw == LATE);
	wl_ok();
}
