/* Connections to a peer that is another program: the `program` listens and is dumped, the `peer`, which is told the port, is not and
 * must hear nothing of it. In states where both keep quiet, and, with `busy`, in those where an end waits to be acknowledged. */
#include "wl.h"
#include "tcpstate.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#define BIG (3 << 20)
enum { DATA, OURS, THEIRS, LATE, QUIET, CLOSING = QUIET, LAST, BUSY };
static unsigned char big[BIG], got[BIG];
static int c[BUSY], pairs;
static int rd(int fd, int n)
{
	int o = 0, r;
	while (o < n && (r = read(fd, got + o, n - o)) > 0)
		o += r;
	return o;
}
static void say(int fd, const char *text) { MUST(write(fd, text, strlen(text)) == (int)strlen(text)); }
static void hear(int fd, const char *text) { MUST(rd(fd, strlen(text)) == (int)strlen(text) && !memcmp(got, text, strlen(text))); }
static void unread(int fd, int n)
{
	int have = 0;
	while (!ioctl(fd, FIONREAD, &have) && have < n)
		usleep(1000);
}
static void program(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof(at);
	int ls = socket(AF_INET, SOCK_STREAM, 0), late = 0, r;
	MUST(!bind(ls, (void *)&at, l) && !listen(ls, BUSY) && !getsockname(ls, (void *)&at, &l));
	printf("port %d\n", ntohs(at.sin_port));
	fflush(stdout);
	for (int i = 0; i < pairs; i++)
		MUST((c[i] = accept(ls, NULL, NULL)) >= 0);
	close(ls);
	unread(c[DATA], 6);
	MUST(!shutdown(c[OURS], SHUT_WR));
	until(c[OURS], TCP_FIN_WAIT2);
	until(c[THEIRS], TCP_CLOSE_WAIT);
	/* more than the peer takes, and the end behind it */
	while ((r = send(c[LATE], big + late, BIG - late, MSG_DONTWAIT)) > 0)
		late += r;
	MUST(late > 100000 && !shutdown(c[LATE], SHUT_WR) && state(c[LATE]) == TCP_FIN_WAIT1);
	if (pairs == BUSY) { /* the peer is deaf by now */
		MUST(!shutdown(c[CLOSING], SHUT_WR) && state(c[CLOSING]) == TCP_FIN_WAIT1);
		until(c[LAST], TCP_CLOSE_WAIT);
		MUST(!shutdown(c[LAST], SHUT_WR) && state(c[LAST]) == TCP_LAST_ACK);
		say(c[DATA], "end");
		until(c[CLOSING], TCP_CLOSING);
	}
	for (int i = 0; i < QUIET; i++)
		until_heard(c[i]);
	wl_wait();
	if (pairs == BUSY) {
		MUST(state(c[CLOSING]) == TCP_CLOSING && state(c[LAST]) == TCP_LAST_ACK);
	}
	MUST(state(c[OURS]) == TCP_FIN_WAIT2 && state(c[THEIRS]) == TCP_CLOSE_WAIT);
	hear(c[DATA], "unread");
	say(c[DATA], "read");
	hear(c[OURS], "x");
	MUST(rd(c[OURS], 1) == 0);
	hear(c[THEIRS], "bye");
	MUST(rd(c[THEIRS], 1) == 0);
	say(c[THEIRS], "y");
	close(c[THEIRS]);
	say(c[DATA], (char[]){ 'L', 'A' + late / 100000, 0 });
	for (int i = CLOSING; i < pairs; i++)
		until(c[i], TCP_CLOSE);
}
static void peer(int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port) };
	struct sock_filter none[] = { { BPF_RET | BPF_K, 0, 0, 0 } };
	struct sock_fprog deaf = { 1, none };
	int late;
	for (int i = 0; i < pairs; i++) {
		c[i] = socket(AF_INET, SOCK_STREAM, 0);
		MUST(!connect(c[i], (void *)&at, sizeof(at)));
		if (i >= CLOSING)
			MUST(!setsockopt(c[i], SOL_SOCKET, SO_ATTACH_FILTER, &deaf, sizeof(deaf)));
	}
	if (pairs == BUSY)
		MUST(!shutdown(c[LAST], SHUT_WR));
	say(c[THEIRS], "bye");
	MUST(!shutdown(c[THEIRS], SHUT_WR));
	say(c[DATA], "unread");
	unread(c[LATE], 1);
	if (pairs == BUSY) {
		hear(c[DATA], "end");
		MUST(!shutdown(c[CLOSING], SHUT_WR));
	}
	for (int i = 0; i < QUIET; i++)
		until_heard(c[i]);
	wl_wait();
	hear(c[DATA], "read"); /* the program has looked at its states */
	for (int i = CLOSING; i < pairs; i++)
		MUST(!setsockopt(c[i], SOL_SOCKET, SO_DETACH_FILTER, &deaf, sizeof(deaf)));
	say(c[OURS], "x");
	MUST(!shutdown(c[OURS], SHUT_WR) && rd(c[OURS], 1) == 0);
	hear(c[THEIRS], "y");
	MUST(rd(c[THEIRS], 1) == 0);
	MUST(rd(c[DATA], 2) == 2);
	late = got[1] - 'A';
	MUST((late = rd(c[LATE], BIG) / 100000 - late) == 0 && pat_ok(got, 100000, 3));
	for (int i = CLOSING; i < pairs; i++)
		until(c[i], TCP_CLOSE);
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	pat_fill(big, BIG, 3);
	MUST(argc > 3);
	pairs = strcmp(argv[2], "busy") ? QUIET : BUSY;
	if (atoi(argv[3]))
		peer(atoi(argv[3]));
	else
		program();
	wl_ok();
}
