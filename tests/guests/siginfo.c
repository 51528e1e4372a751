/* Signals of every origin wait, each with all of its siginfo: what was taken of the first of two equal
 * ones is what must be taken of the second, which waits while the program is dumped. Sent by kill,
 * tgkill, sigqueue, a timer, a child that ended, a descriptor that can be read, a message queue, a fault,
 * seccomp, broken memory, a breakpoint. Then timers of each clock and kind, one for a thread. */
#include "wl.h"
enum { KINDS = 12 };
static sigset_t all;
static siginfo_t want[KINDS];
static const char *const names[KINDS] = { "kill", "tgkill", "sigqueue", "timer", "child", "descriptor",
	"message queue", "fault", "seccomp", "memory", "breakpoint", "asynchronous I/O" };
static const int signals[KINDS] = { SIGUSR1, SIGUSR2, 40, 41, SIGCHLD, 43, 44, SIGSEGV, SIGSYS, SIGBUS, SIGTRAP, 46 };
static int pipe_fds[2];
static timer_t timer;

static void inject(int sig, int code, const void *fields, size_t len)
{
	siginfo_t info;
	memset(&info, 0, sizeof(info));
	info.si_signo = sig;
	info.si_code = code;
	info.si_errno = 7;
	memcpy((char *)&info + 16, fields, len);
	MUST(!syscall(SYS_rt_sigqueueinfo, getpid(), sig, &info));
}

static void raise_kind(int kind)
{
	struct itimerspec soon = { { 0, 0 }, { 0, 1 } };
	union sigval v = { .sival_ptr = (void *)0x1234567890abcdef };
	unsigned long fault[] = { 0xdead0000, 3 }, call[] = { 0x401000, 0xc000003e00000065ul };
	unsigned long message[] = { 0, 0xfeed };
	pid_t kid;
	switch (kind) {
	case 0:
		/* By a parent of no child that ends, or its SIGCHLD would wait too. */
		MUST(!kill(getpid(), SIGUSR1));
		break;
	case 1:
		MUST(!syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
		break;
	case 2:
		MUST(!sigqueue(getpid(), 40, v));
		break;
	case 3:
		MUST(!timer_settime(timer, 0, &soon, NULL));
		break;
	case 4:
		if (!(kid = fork()))
			_exit(23);
		break;
	case 5:
		MUST(write(pipe_fds[1], "x", 1) == 1);
		break;
	case 6:
		inject(44, SI_MESGQ, message, sizeof(message));
		break;
	case 7:
		inject(SIGSEGV, SEGV_ACCERR, fault, sizeof(fault));
		break;
	case 8:
		inject(SIGSYS, 1, call, sizeof(call));
		break;
	case 9:
		inject(SIGBUS, BUS_MCEERR_AO, fault, sizeof(fault));
		break;
	case 10:
		inject(SIGTRAP, TRAP_BRKPT, fault, sizeof(fault));
		break;
	default:
		inject(46, SI_ASYNCIO, message, sizeof(message));
	}
}

static siginfo_t take(int kind, int forever)
{
	struct timespec none = { 0, 0 };
	siginfo_t info;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, signals[kind]);
	memset(&info, 0, sizeof(info));
	/* By the raw call: the C library changes the code of tgkill. */
	long got = syscall(SYS_rt_sigtimedwait, &one, &info, forever ? NULL : &none, 8);
	if (got != signals[kind])
		fail("%s: sigtimedwait gave %ld", names[kind], got);
	if (kind == 4) {
		/* Two children are not the same in these. */
		info.si_pid = info.si_utime = info.si_stime = 0;
	}
	return info;
}

enum { TIMERS = 8, FAR = 5000 };
static const struct { clockid_t clock; int notify; } kinds[TIMERS] = {
	{ CLOCK_REALTIME, SIGEV_NONE }, { CLOCK_MONOTONIC, SIGEV_SIGNAL }, { CLOCK_BOOTTIME, SIGEV_THREAD_ID },
	{ CLOCK_TAI, SIGEV_SIGNAL }, { CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL },
	{ CLOCK_THREAD_CPUTIME_ID, SIGEV_THREAD_ID }, { CLOCK_REALTIME, SIGEV_THREAD_ID }, { CLOCK_MONOTONIC, SIGEV_NONE } };
static timer_t timers[TIMERS];

int main(int argc, char **argv)
{
	struct itimerspec far = { { 70, 80 }, { FAR, 0 } }, now;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = 41, .sigev_value.sival_int = 99 };
	wl_start(argc, argv);
	sigfillset(&all);
	sigdelset(&all, SIGTERM);
	MUST(!sigprocmask(SIG_SETMASK, &all, NULL));
	MUST(!timer_create(CLOCK_MONOTONIC, &ev, &timer));
	MUST(!pipe(pipe_fds) && !fcntl(pipe_fds[0], F_SETSIG, 43) && !fcntl(pipe_fds[0], F_SETOWN, getpid()));
	MUST(!fcntl(pipe_fds[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	for (int i = 0; i < KINDS; i++) {
		char c;
		raise_kind(i);
		want[i] = take(i, 1);
		if (i == 4)
			MUST(waitpid(-1, NULL, 0) > 0);
		if (i == 5)
			MUST(read(pipe_fds[0], &c, 1) == 1);
		raise_kind(i);
	}
	/* The second child and the timer come by themselves. */
	sigset_t pending;
	do {
		usleep(1000);
		MUST(!sigpending(&pending));
	} while (!sigismember(&pending, SIGCHLD) || !sigismember(&pending, 41));
	for (int i = 0; i < TIMERS; i++) {
		ev.sigev_notify = kinds[i].notify;
		ev.sigev_signo = 50;
		*(int *)((char *)&ev + 16) = syscall(SYS_gettid);
		MUST(!timer_create(kinds[i].clock, &ev, &timers[i]) && !timer_settime(timers[i], 0, &far, NULL));
	}
	wl_wait();
	for (int i = 0; i < KINDS; i++) {
		siginfo_t got = take(i, 0);
		if (memcmp(&got, &want[i], sizeof(got)))
			fail("%s: siginfo differs: code %d and %d", names[i], got.si_code, want[i].si_code);
	}
	MUST(!sigpending(&pending));
	for (int i = 0; i < KINDS; i++)
		MUST(!sigismember(&pending, signals[i]));
	for (int i = 0; i < TIMERS; i++) {
		MUST(!timer_gettime(timers[i], &now) && now.it_interval.tv_sec == 70 && now.it_interval.tv_nsec == 80);
		if (now.it_value.tv_sec > FAR || now.it_value.tv_sec < FAR - 300)
			fail("timer %d has %ld seconds left", i, (long)now.it_value.tv_sec);
	}
	wl_ok();
}
