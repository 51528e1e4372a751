/* Many timers that expire once each, one after the other a millisecond apart, all the time while the
 * program is stopped, dumped and restored: each signal comes exactly once, to the process or to one
 * thread. */
#include "wl.h"
enum { TIMERS = 800, FIRST_MS = 20 };
static int came[2][TIMERS];

static void expect_once(const char *whose, const int *count)
{
	for (int i = 0; i < TIMERS; i++)
		if (count[i] != 1)
			fail("%s signal of timer %d came %d times", whose, i, count[i]);
}

int main(int argc, char **argv)
{
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL };
	struct timespec none = { 0, 0 };
	siginfo_t info;
	sigset_t set;
	timer_t id;
	wl_start(argc, argv);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigaddset(&set, SIGRTMIN + 1);
	MUST(!sigprocmask(SIG_BLOCK, &set, NULL));
	*(int *)((char *)&ev + 16) = syscall(SYS_gettid);
	for (int i = 0; i < TIMERS; i++)
		for (int to_thread = 0; to_thread < 2; to_thread++) {
			long ns = (FIRST_MS + i) * 1000000L;
			struct itimerspec spec = { { 0, 0 }, { ns / 1000000000, ns % 1000000000 } };
			ev.sigev_notify = to_thread ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
			ev.sigev_signo = SIGRTMIN + to_thread;
			ev.sigev_value.sival_int = i;
			MUST(!timer_create(CLOCK_MONOTONIC, &ev, &id) && !timer_settime(id, 0, &spec, NULL));
		}
	wl_wait();
	/* All of them have expired when the last one has; another second would bring none. */
	for (int got = 0; got < 2 * TIMERS; got++) {
		MUST(sigwaitinfo(&set, &info) > 0 && info.si_code == SI_TIMER);
		came[info.si_signo == SIGRTMIN + 1][info.si_value.sival_int]++;
		if (info.si_value.sival_int == TIMERS - 1 && info.si_signo == SIGRTMIN + 1)
			break;
	}
	usleep(1000);
	while (sigtimedwait(&set, &info, &none) > 0)
		came[info.si_signo == SIGRTMIN + 1][info.si_value.sival_int]++;
	expect_once("process", came[0]);
	expect_once("thread", came[1]);
	wl_ok();
}
