/*
 * Targets of an epoll that their numbers do not mean any more: moved to another number by dup, by a
 * number that is another file now, alive in a child only, alive in flight only; one file under two
 * numbers; an exclusive target; epolls in epolls, two deep, of which the inner is closed. And signalfds
 * with several masks, timers on alarm clocks, one that a change of the clock cancels.
 */
#include "scm.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
static int ep;
static void add(int to, int fd, unsigned events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };
	MUST(!epoll_ctl(to, EPOLL_CTL_ADD, fd, &e));
}
/* What is ready, as a set of bits. */
static uint64_t ready(int fd)
{
	struct epoll_event out[16];
	uint64_t set = 0;
	int n = epoll_wait(fd, out, 16, 0);
	MUST(n >= 0);
	for (int i = 0; i < n; i++)
		set |= 1ull << out[i].data.u64;
	return set;
}
static void ring(int fd)
{
	uint64_t one = 1;
	MUST(write(fd, &one, 8) == 8);
}
static void hush(int fd)
{
	uint64_t v;
	MUST(read(fd, &v, 8) == 8);
}
static int flags_of(int fd)
{
	char path[64], *s;
	int flags = -1;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if ((s = strstr(slurp(path), "settime flags:")))
		sscanf(s, "settime flags: %o", &flags);
	return flags;
}
static int in_child, report[2];
static void child(void *a)
{
	char c;
	(void)a;
	MUST(read(report[0], &c, 1) == 1);
	ring(in_child);
	MUST(write(report[0], "r", 1) == 1);
}
int main(int argc, char **argv)
{
	int pair[2];
	sigset_t one, two;
	wl_start(argc, argv);
	ep = epoll_create1(0);
	/* 0: moved by dup. 1: its number is another file, which is 2. */
	int moved = eventfd(0, EFD_NONBLOCK), reused = eventfd(0, EFD_NONBLOCK);
	int exclusive = eventfd(0, EFD_NONBLOCK), twice = eventfd(0, EFD_NONBLOCK), again = dup(twice);
	in_child = eventfd(0, EFD_NONBLOCK);
	int flying = eventfd(0, EFD_NONBLOCK), middle = epoll_create1(0), inner = epoll_create1(0);
	int deep = eventfd(0, EFD_NONBLOCK);
	add(ep, moved, EPOLLIN, 0);
	add(ep, reused, EPOLLIN, 1);
	int moved_to = dup(moved), reused_to = dup(reused);
	MUST(!close(moved));
	int other = eventfd(0, EFD_NONBLOCK);
	MUST(other == moved && dup2(other, reused) == reused);
	add(ep, reused, EPOLLIN, 2);
	MUST(!close(other));
	add(ep, twice, EPOLLIN, 3);
	add(ep, again, EPOLLIN | EPOLLET, 4);
	add(ep, exclusive, EPOLLIN | EPOLLEXCLUSIVE, 5);
	add(ep, in_child, EPOLLIN, 6);
	add(ep, flying, EPOLLIN, 7);
	add(inner, deep, EPOLLIN, 9);
	add(middle, inner, EPOLLIN, 10);
	add(ep, middle, EPOLLIN, 8);
	int inner_to = fcntl(inner, F_DUPFD, 100);
	MUST(!close(inner) && !socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, report));
	wl_fork(child, NULL);
	MUST(!close(in_child));
	send_fds(pair[0], &flying, 1, "x");
	MUST(!close(flying));
	sigemptyset(&one);
	sigaddset(&one, SIGUSR1);
	sigemptyset(&two);
	sigaddset(&two, SIGUSR2);
	sigaddset(&two, SIGRTMIN + 5);
	sigprocmask(SIG_BLOCK, &one, NULL);
	sigprocmask(SIG_BLOCK, &two, NULL);
	int s1 = signalfd(-1, &one, SFD_NONBLOCK), s2 = signalfd(-1, &two, SFD_NONBLOCK | SFD_CLOEXEC);
	int a1 = timerfd_create(CLOCK_REALTIME_ALARM, 0), a2 = timerfd_create(CLOCK_BOOTTIME_ALARM, TFD_NONBLOCK);
	int cancelled = timerfd_create(CLOCK_REALTIME, 0);
	struct itimerspec t = { { 500, 0 }, { 5000, 0 } };
	struct timespec now;
	MUST(a1 >= 0 && a2 >= 0 && !timerfd_settime(a1, 0, &t, NULL) && !timerfd_settime(a2, 0, &t, NULL));
	clock_gettime(CLOCK_REALTIME, &now);
	struct itimerspec far = { { 0, 0 }, { now.tv_sec + 9000, 0 } };
	MUST(!timerfd_settime(cancelled, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, NULL));
	wl_wait();
	MUST(ready(ep) == 0);
	ring(moved_to);
	MUST(ready(ep) == 1);
	hush(moved_to);
	ring(reused_to);
	MUST(ready(ep) == 2);
	hush(reused_to);
	ring(reused);
	MUST(ready(ep) == 4);
	hush(reused);
	ring(twice);
	MUST(ready(ep) == (8 | 16) && ready(ep) == 8);
	hush(twice);
	ring(exclusive);
	MUST(ready(ep) == 32);
	hush(exclusive);
	/* The number it was added under is the one to take it out by. */
	MUST(epoll_ctl(ep, EPOLL_CTL_DEL, moved_to, NULL) < 0 && errno == ENOENT);
	MUST(dup2(moved_to, moved) == moved && !epoll_ctl(ep, EPOLL_CTL_DEL, moved, NULL));
	char c;
	MUST(write(report[1], "c", 1) == 1 && read(report[1], &c, 1) == 1 && ready(ep) == 64);
	flying = recv_fd(pair[1], "x", 0);
	ring(flying);
	MUST(ready(ep) == (64 | 128));
	hush(flying);
	ring(deep);
	MUST(ready(ep) == (64 | 256) && ready(inner_to) == 512);
	struct signalfd_siginfo info;
	kill(getpid(), SIGUSR1);
	kill(getpid(), SIGRTMIN + 5);
	MUST(read(s2, &info, sizeof(info)) == sizeof(info) && (int)info.ssi_signo == SIGRTMIN + 5);
	MUST(read(s2, &info, sizeof(info)) < 0);
	MUST(read(s1, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == SIGUSR1);
	MUST(!timerfd_gettime(a1, &t) && t.it_interval.tv_sec == 500 && t.it_value.tv_sec > 4800);
	MUST(!timerfd_gettime(a2, &t) && t.it_interval.tv_sec == 500 && t.it_value.tv_sec > 4800);
	MUST(flags_of(cancelled) == (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET));
	wl_ok();
}
