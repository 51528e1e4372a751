/* Tcp connections over loopback in the states that a program can hold: bytes that the peer's window keeps back, ends sent and
 * received in each order, the peer closed for good, addresses of v4 in v6; with the options of sockets. */
#include "wl.h"
#include "sockopt.h"
#include "tcpstate.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#define BIG (3 << 20)
enum { FULL, OURS_FIRST, THEIRS_FIRST, BOTH, LAST, MAPPED, OPTIONS, LATE_END, PAIRS };
static int c[PAIRS], s[PAIRS], ls, dead, reset_of;
static struct sockaddr_storage at;
static socklen_t at_len = sizeof(at);
static unsigned char big[BIG], got[BIG];
static void pair(int fam, int *client, int *server)
{
	struct sockaddr_in6 to = { .sin6_family = AF_INET6 };
	struct sockaddr_in *four = (void *)&at;
	*client = socket(fam, SOCK_STREAM, 0);
	if (fam == AF_INET) {
		MUST(!connect(*client, (void *)&at, at_len));
	} else {
		to.sin6_port = four->sin_port;
		MUST(inet_pton(AF_INET6, "::ffff:127.0.0.1", &to.sin6_addr) == 1);
		MUST(!connect(*client, (void *)&to, sizeof(to)));
	}
	MUST((*server = accept(ls, NULL, NULL)) >= 0);
}
static int rd(int fd, unsigned char *p, int n)
{
	int o = 0, r;
	while (o < n && (r = read(fd, p + o, n - o)) > 0)
		o += r;
	return o;
}
static int full(int fd) /* write until nothing more fits */
{
	int o = 0, r;
	while (o < BIG && (r = send(fd, big + o, BIG - o, MSG_DONTWAIT)) > 0)
		o += r;
	return o;
}
int main(int argc, char **argv)
{
	struct sock_filter keep[] = { { BPF_RET | BPF_K, 0, 0, 0xffffffff } };
	struct sock_fprog prog = { 1, keep };
	struct linger none = { 1, 0 };
	struct timeval tv = { 77, 0 };
	int wrote, late, v;
	socklen_t l;
	wl_start(argc, argv);
	pat_fill(big, BIG, 3);
	((struct sockaddr_in *)&at)->sin_family = AF_INET;
	((struct sockaddr_in *)&at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ls = socket(AF_INET, SOCK_STREAM, 0);
	MUST(!bind(ls, (void *)&at, sizeof(struct sockaddr_in)) && !listen(ls, 20) && !getsockname(ls, (void *)&at, &at_len));
	for (int i = 0; i < PAIRS; i++)
		pair(i == MAPPED ? AF_INET6 : AF_INET, &c[i], &s[i]);
	/* the peer reads nothing: sent, unacknowledged and never sent bytes */
	wrote = full(c[FULL]);
	late = full(s[LATE_END]);
	MUST(wrote > 100000 && late > 100000 && !shutdown(s[LATE_END], SHUT_WR));
	/* one side has ended */
	MUST(write(c[OURS_FIRST], "last", 4) == 4 && !shutdown(c[OURS_FIRST], SHUT_WR));
	MUST(write(s[THEIRS_FIRST], "bye", 3) == 3 && !shutdown(s[THEIRS_FIRST], SHUT_WR));
	until(c[THEIRS_FIRST], TCP_CLOSE_WAIT);
	/* both have, one after the other: the first waits in TIME_WAIT without a descriptor, the second is closed */
	MUST(write(s[BOTH], "z", 1) == 1 && rd(c[BOTH], got, 1) == 1 && !shutdown(s[BOTH], SHUT_WR));
	until(c[BOTH], TCP_CLOSE_WAIT);
	MUST(!shutdown(c[BOTH], SHUT_WR));
	until(c[BOTH], TCP_CLOSE);
	/* our end is sent but not taken: the peer has no room for the bytes before it */
	MUST(!shutdown(s[LAST], SHUT_WR));
	until(c[LAST], TCP_CLOSE_WAIT);
	int last = full(c[LAST]);
	MUST(!shutdown(c[LAST], SHUT_WR));
	MUST(state(c[LAST]) == TCP_LAST_ACK);
	/* the peer has reset it */
	pair(AF_INET, &dead, &reset_of);
	MUST(!setsockopt(reset_of, SOL_SOCKET, SO_LINGER, &none, sizeof(none)) && !close(reset_of));
	until(dead, TCP_CLOSE);
	MUST(read(dead, got, 1) < 0 && errno == ECONNRESET);
	/* options */
	int o = c[OPTIONS];
	MUST(set(o, IPPROTO_IP, IP_TOS, 16)); /* sets the priority too */
	MUST(set(o, SOL_SOCKET, SO_RCVBUF, 50000) && set(o, SOL_SOCKET, SO_MARK, 7) && set(o, SOL_SOCKET, SO_PRIORITY, 3));
	MUST(set(o, SOL_SOCKET, SO_REUSEADDR, 1) && set(o, SOL_SOCKET, SO_RCVLOWAT, 4) && set(o, SOL_SOCKET, SO_OOBINLINE, 1));
	MUST(set(o, IPPROTO_TCP, TCP_CORK, 1) && set(o, IPPROTO_TCP, TCP_KEEPCNT, 4) && set(o, IPPROTO_TCP, TCP_KEEPINTVL, 33));
	MUST(set(o, IPPROTO_IP, IP_TTL, 33) && set(o, IPPROTO_IP, IP_FREEBIND, 1));
	MUST(!setsockopt(o, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)));
	MUST(!setsockopt(o, SOL_SOCKET, SO_LINGER, &none, sizeof(none)) && !setsockopt(o, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)));
	int rcvbuf = opt(o, SOL_SOCKET, SO_RCVBUF), lock = opt(o, SOL_SOCKET, 72);
	MUST(write(o, "corked", 6) == 6);
	wl_wait();
	MUST(rd(s[FULL], got, wrote) == wrote && pat_ok(got, wrote, 3) && write(s[FULL], "ok", 2) == 2 && rd(c[FULL], got, 2) == 2);
	MUST(rd(c[LATE_END], got, BIG) == late && pat_ok(got, late, 3) && write(c[LATE_END], "still", 5) == 5);
	MUST(rd(s[LATE_END], got, 5) == 5);
	MUST(rd(s[OURS_FIRST], got, 9) == 4 && write(s[OURS_FIRST], "x", 1) == 1 && rd(c[OURS_FIRST], got, 1) == 1);
	MUST(send(c[OURS_FIRST], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	MUST(rd(c[THEIRS_FIRST], got, 9) == 3 && write(c[THEIRS_FIRST], "y", 1) == 1 && rd(s[THEIRS_FIRST], got, 1) == 1);
	MUST(state(c[BOTH]) == TCP_CLOSE && rd(c[BOTH], got, 1) == 0 && send(c[BOTH], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	MUST(rd(s[LAST], got, BIG) == last && pat_ok(got, last, 3));
	MUST(state(dead) == TCP_CLOSE && rd(dead, got, 1) == 0 && send(dead, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	struct sockaddr_in6 six;
	l = sizeof(six);
	MUST(!getpeername(c[MAPPED], (void *)&six, &l) && IN6_IS_ADDR_V4MAPPED(&six.sin6_addr));
	MUST(write(c[MAPPED], "mapped", 6) == 6 && rd(s[MAPPED], got, 6) == 6 && !memcmp(got, "mapped", 6));
	MUST(opt(o, SOL_SOCKET, SO_RCVBUF) == rcvbuf && opt(o, SOL_SOCKET, 72) == lock && opt(o, SOL_SOCKET, SO_MARK) == 7);
	MUST(opt(o, SOL_SOCKET, SO_PRIORITY) == 3 && opt(o, SOL_SOCKET, SO_REUSEADDR) == 1 && opt(o, SOL_SOCKET, SO_RCVLOWAT) == 4);
	MUST(opt(o, SOL_SOCKET, SO_OOBINLINE) == 1 && opt(o, IPPROTO_TCP, TCP_CORK) == 1 && opt(o, IPPROTO_TCP, TCP_KEEPCNT) == 4);
	MUST(opt(o, IPPROTO_TCP, TCP_KEEPINTVL) == 33 && opt(o, IPPROTO_IP, IP_TOS) == 16 && opt(o, IPPROTO_IP, IP_TTL) == 33);
	MUST(opt(o, IPPROTO_IP, IP_FREEBIND) == 1 && opt(s[FULL], SOL_SOCKET, SO_REUSEADDR) == opt(ls, SOL_SOCKET, SO_REUSEADDR));
	l = 1;
	MUST(!getsockopt(o, SOL_SOCKET, SO_GET_FILTER, keep, &l) && l == 1);
	l = sizeof(none);
	MUST(!getsockopt(o, SOL_SOCKET, SO_LINGER, &none, &l) && none.l_onoff == 1 && none.l_linger == 0);
	l = sizeof(tv);
	MUST(!getsockopt(o, SOL_SOCKET, SO_RCVTIMEO, &tv, &l) && tv.tv_sec == 77);
	MUST(set(o, IPPROTO_TCP, TCP_CORK, 0) && rd(s[OPTIONS], got, 6) == 6 && !memcmp(got, "corked", 6));
	v = socket(AF_INET, SOCK_STREAM, 0); /* the listener listens */
	MUST(!connect(v, (void *)&at, at_len) && (v = accept(ls, NULL, NULL)) >= 0);
	wl_ok();
}
