/* A listener whose queue is full: one connection waits in it, another is still being made. The first is lost by a restore
 * (--skip-in-flight), the second begins again and is accepted. */
#include "wl.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
static int state(int fd)
{
	struct tcp_info i;
	socklen_t l = sizeof(i);
	MUST(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &l));
	return i.tcpi_state;
}
int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET }, mine, seen;
	socklen_t l = sizeof(at);
	char b[8];
	wl_start(argc, argv);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), first, second;
	MUST(!bind(ls, (void *)&at, sizeof(at)) && !listen(ls, 0) && !getsockname(ls, (void *)&at, &l));
	first = socket(AF_INET, SOCK_STREAM, 0);
	second = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	MUST(!connect(first, (void *)&at, sizeof(at)));
	MUST(connect(second, (void *)&at, sizeof(at)) < 0 && errno == EINPROGRESS && state(second) == TCP_SYN_SENT);
	l = sizeof(mine);
	MUST(!getsockname(second, (void *)&mine, &l) && mine.sin_port);
	wl_wait();
	for (;;) { /* left running, the first is accepted before */
		struct pollfd p = { ls, POLLIN, 0 };
		MUST(poll(&p, 1, -1) == 1);
		l = sizeof(seen);
		int s = accept(ls, (void *)&seen, &l);
		MUST(s >= 0);
		if (seen.sin_port != mine.sin_port)
			continue;
		struct pollfd q = { second, POLLOUT, 0 };
		MUST(poll(&q, 1, -1) == 1 && state(second) == TCP_ESTABLISHED);
		MUST(write(second, "hello", 5) == 5 && recv(s, b, 5, MSG_WAITALL) == 5 && !memcmp(b, "hello", 5));
		wl_ok();
	}
}
