/* What is left of timers of each kind, read all the time between two looks at the clock. At the
 * end, for each timer, the last reading before the program stood still for more than half a second
 * and the first after it: "NAME before CLOCK LEFT after CLOCK LEFT", in nanoseconds, the clock at
 * its earliest before and at its latest after. */
#include "wl.h"
#include <sys/timerfd.h>
#define GIGA 1000000000LL
enum { TIMERS = 6, FAR = 1000 };
static const char *const names[TIMERS] = { "posix", "periodic", "realtime", "itimer", "timerfd", "absolute" };
static timer_t posix_timers[3];
static int timerfds[2];

static long long nanos(struct timespec t) { return t.tv_sec * GIGA + t.tv_nsec; }

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return nanos(t);
}

static long long left(int which)
{
	struct itimerspec t;
	struct itimerval v;
	if (which < 3) {
		MUST(!timer_gettime(posix_timers[which], &t));
	} else if (which == 3) {
		MUST(!getitimer(ITIMER_REAL, &v));
		return v.it_value.tv_sec * GIGA + v.it_value.tv_usec * 1000;
	} else {
		MUST(!timerfd_gettime(timerfds[which - 4], &t));
	}
	return nanos(t.it_value);
}

static void arm(void)
{
	struct itimerspec once = { { 0, 0 }, { FAR, 0 } }, again = { { FAR, 0 }, { FAR, 0 } };
	struct itimerval real = { { 0, 0 }, { FAR, 0 } };
	struct sigevent none = { .sigev_notify = SIGEV_NONE }, ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	MUST(!timer_create(CLOCK_MONOTONIC, &ev, &posix_timers[0]) && !timer_settime(posix_timers[0], 0, &once, NULL));
	MUST(!timer_create(CLOCK_BOOTTIME, &ev, &posix_timers[1]) && !timer_settime(posix_timers[1], 0, &again, NULL));
	MUST(!timer_create(CLOCK_REALTIME, &none, &posix_timers[2]) && !timer_settime(posix_timers[2], 0, &once, NULL));
	MUST(!setitimer(ITIMER_REAL, &real, NULL));
	MUST((timerfds[0] = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0 && !timerfd_settime(timerfds[0], 0, &again, NULL));
	MUST((timerfds[1] = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0);
	once.it_value.tv_sec += now() / GIGA;
	MUST(!timerfd_settime(timerfds[1], TFD_TIMER_ABSTIME, &once, NULL));
}

int main(int argc, char **argv)
{
	/* Clock, what is left, clock again. */
	long long seen[TIMERS][3], last[TIMERS][3];
	int gone = 0;
	wl_start(argc, argv);
	arm();
	for (int i = 0; i < TIMERS; i++)
		seen[i][0] = now(), seen[i][1] = left(i), seen[i][2] = now();
	printf("ready\n");
	fflush(stdout);
	while (!wl_term || !gone) {
		for (int i = 0; i < TIMERS; i++) {
			memcpy(last[i], seen[i], sizeof(last[i]));
			seen[i][0] = now(), seen[i][1] = left(i), seen[i][2] = now();
		}
		/* The first round behind the restore: no timer was read in the middle of one. */
		for (int i = 0; i < TIMERS && !gone; i++) {
			long long stood = seen[i][2] - last[i][0] - (last[i][1] - seen[i][1]);
			if (stood > GIGA / 2)
				gone = 1;
		}
		if (gone == 1) {
			gone = 2;
			for (int i = 0; i < TIMERS; i++) {
				/* One that was read behind the restore already is read once more. */
				long long stood = seen[i][2] - last[i][0] - (last[i][1] - seen[i][1]);
				if (stood <= GIGA / 2)
					seen[i][0] = now(), seen[i][1] = left(i), seen[i][2] = now();
				printf("%s before %lld %lld after %lld %lld\n", names[i], last[i][0], last[i][1], seen[i][2], seen[i][1]);
			}
		}
	}
	wl_ok();
}
