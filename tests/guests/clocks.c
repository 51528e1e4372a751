/* The clocks that count from the boot never run backwards, and a timer armed to a time of theirs and
 * a sleep go on. A word in memory is the latest that was seen of each. */
#include "wl.h"
static struct timespec seen[2];
static const clockid_t clocks[2] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME };

static void look(void)
{
	for (int i = 0; i < 2; i++) {
		struct timespec now;
		MUST(clock_gettime(clocks[i], &now) == 0);
		MUST(now.tv_sec > seen[i].tv_sec ||
		     (now.tv_sec == seen[i].tv_sec && now.tv_nsec >= seen[i].tv_nsec));
		/* The system call and the vdso agree. */
		struct timespec by_call;
		MUST(syscall(SYS_clock_gettime, clocks[i], &by_call) == 0);
		MUST(by_call.tv_sec - now.tv_sec >= 0 && by_call.tv_sec - now.tv_sec < 600);
		seen[i] = by_call;
	}
}

int main(int argc, char **argv)
{
	int fds[2];
	char byte;
	struct itimerspec spec = { 0 }, left;
	timer_t id;
	wl_start(argc, argv);
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
	MUST(timer_create(CLOCK_MONOTONIC, &ev, &id) == 0 && pipe(fds) == 0);
	look();
	spec.it_value = seen[0];
	spec.it_value.tv_sec += 3000;
	MUST(timer_settime(id, TIMER_ABSTIME, &spec, NULL) == 0);
	/* A child looks too, from its own copy of what was seen. */
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		close(fds[1]);
		while (read(fds[0], &byte, 1) < 0 && errno == EINTR)
			;
		look();
		_exit(7);
	}
	look();
	wl_wait();
	look();
	MUST(timer_gettime(id, &left) == 0 && left.it_value.tv_sec > 2000 && left.it_value.tv_sec <= 3000);
	MUST(write(fds[1], "x", 1) == 1);
	int st;
	MUST(waitpid(child, &st, 0) == child && WIFEXITED(st) && WEXITSTATUS(st) == 7);
	wl_ok();
}
