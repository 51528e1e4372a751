/* Eight tcp connections over loopback to a child that gives back what it gets, all in use all the time: any error of any call is
 * a failure at once. */
#include "wl.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#define PAIRS 8
static int c[PAIRS], s[PAIRS];
static void echo(void *arg)
{
	char b[256];
	(void)arg;
	struct pollfd p[PAIRS];
	for (int i = 0; i < PAIRS; i++)
		p[i] = (struct pollfd){ s[i], POLLIN, 0 };
	for (;;) {
		if (poll(p, PAIRS, -1) < 0)
			continue;
		for (int i = 0; i < PAIRS; i++)
			if (p[i].revents) {
				int n = read(s[i], b, sizeof(b));
				if (n <= 0 || write(s[i], b, n) != n)
					_exit(1);
			}
	}
}
int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	socklen_t l = sizeof(at);
	uint64_t sent[PAIRS], got, n = 0;
	int on = 1;
	wl_start(argc, argv);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int ls = socket(AF_INET, SOCK_STREAM, 0);
	MUST(!bind(ls, (void *)&at, sizeof(at)) && !listen(ls, PAIRS) && !getsockname(ls, (void *)&at, &l));
	for (int i = 0; i < PAIRS; i++) {
		c[i] = socket(AF_INET, SOCK_STREAM, 0);
		MUST(!connect(c[i], (void *)&at, sizeof(at)) && (s[i] = accept(ls, NULL, NULL)) >= 0);
		MUST(!setsockopt(c[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)));
	}
	close(ls);
	wl_fork(echo, NULL);
	printf("ready\n");
	fflush(stdout);
	while (!wl_term) {
		for (int i = 0; i < PAIRS; i++) {
			sent[i] = ++n;
			MUST(write(c[i], &sent[i], 8) == 8);
		}
		for (int i = 0; i < PAIRS; i++) {
			/* a signal may cut a wait short, nothing else may */
			int r, o = 0;
			while (o < 8) {
				r = read(c[i], (char *)&got + o, 8 - o);
				MUST(r > 0 || (r < 0 && errno == EINTR));
				o += r > 0 ? r : 0;
			}
			MUST(got == sent[i]);
		}
		usleep(200);
	}
	wl_ok();
}
