/* Datagrams that wait to be read: from senders that live and that are gone, to sockets that are bound, bound to no address, connected
 * and of ipv6, empty and as large as they get; in their order and with their senders. */
#include "wl.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#define LARGE 65507
enum { BOUND, ANY, CONNECTED, SIX, ANY6, SOCKETS };
static int fd[SOCKETS], sender, sender6;
static struct sockaddr_storage at[SOCKETS], from, from6;
static unsigned char large[LARGE], got[LARGE + 1];
static int made(int fam, int any, struct sockaddr_storage *name)
{
	struct sockaddr_in *four = (void *)name;
	struct sockaddr_in6 *six = (void *)name;
	socklen_t l = sizeof(*name);
	int s = socket(fam, SOCK_DGRAM, 0);
	memset(name, 0, sizeof(*name));
	name->ss_family = fam;
	if (fam == AF_INET)
		four->sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK);
	else
		six->sin6_addr = any ? in6addr_any : in6addr_loopback;
	MUST(s >= 0 && !bind(s, (void *)name, fam == AF_INET ? sizeof(*four) : sizeof(*six)) && !getsockname(s, (void *)name, &l));
	return s;
}
static void put(int s, int to, const void *data, int len)
{
	struct sockaddr_in mapped = *(struct sockaddr_in *)&at[to];
	struct sockaddr_in6 *six = (void *)&at[to];
	socklen_t l = sizeof(mapped);
	if (at[to].ss_family == AF_INET6 && s != sender6) { /* by ipv4 to a socket of both */
		mapped.sin_family = AF_INET;
		mapped.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		mapped.sin_port = six->sin6_port;
	} else if (at[to].ss_family == AF_INET6) {
		MUST(sendto(s, data, len, 0, (void *)six, sizeof(*six)) == len);
		return;
	}
	MUST(sendto(s, data, len, 0, (void *)&mapped, l) == len);
}
static void next(int of, const void *data, int len, struct sockaddr_storage *wanted)
{
	struct sockaddr_storage who = { 0 };
	socklen_t l = sizeof(who);
	int n = recvfrom(fd[of], got, sizeof(got), MSG_DONTWAIT, (void *)&who, &l);
	if (n != len || memcmp(got, data, len))
		fail("socket %d: %d bytes of %d", of, n, len);
	if (who.ss_family == AF_INET)
		MUST(((struct sockaddr_in *)&who)->sin_port == ((struct sockaddr_in *)wanted)->sin_port);
	else
		MUST(((struct sockaddr_in6 *)&who)->sin6_port == ((struct sockaddr_in6 *)wanted)->sin6_port);
}
int main(int argc, char **argv)
{
	struct sockaddr_storage gone;
	int s, v = 1 << 20;
	wl_start(argc, argv);
	pat_fill(large, LARGE, 5);
	fd[BOUND] = made(AF_INET, 0, &at[BOUND]);
	fd[ANY] = made(AF_INET, 1, &at[ANY]);
	fd[CONNECTED] = made(AF_INET, 0, &at[CONNECTED]);
	fd[SIX] = made(AF_INET6, 0, &at[SIX]);
	fd[ANY6] = made(AF_INET6, 1, &at[ANY6]);
	sender = made(AF_INET, 0, &from);
	sender6 = made(AF_INET6, 0, &from6);
	MUST(!connect(fd[CONNECTED], (void *)&from, sizeof(struct sockaddr_in)));
	MUST(!setsockopt(fd[BOUND], SOL_SOCKET, SO_RCVBUFFORCE, &v, sizeof(v)));
	s = made(AF_INET, 0, &gone);
	put(s, BOUND, "first", 5);
	close(s);
	put(sender, BOUND, "", 0);
	for (int i = 0; i < 8; i++) /* more than a new socket takes */
		put(sender, BOUND, large, LARGE - i);
	put(sender, ANY, "any", 3);
	put(sender, CONNECTED, "connected", 9);
	put(sender6, SIX, "six", 3);
	put(sender6, SIX, large, 1001);
	put(sender6, ANY6, "by six", 6);
	put(sender, ANY6, "by four", 7);
	wl_wait();
	next(BOUND, "first", 5, &gone);
	next(BOUND, "", 0, &from);
	for (int i = 0; i < 8; i++)
		next(BOUND, large, LARGE - i, &from);
	next(ANY, "any", 3, &from);
	next(CONNECTED, "connected", 9, &from);
	next(SIX, "six", 3, &from6);
	next(SIX, large, 1001, &from6);
	next(ANY6, "by six", 6, &from6);
	next(ANY6, "by four", 7, &from);
	for (int i = 0; i < SOCKETS; i++)
		MUST(recv(fd[i], got, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
	put(sender, BOUND, "new", 3);
	next(BOUND, "new", 3, &from);
	wl_ok();
}
