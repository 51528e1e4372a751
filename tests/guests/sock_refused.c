/* Sockets that a checkpoint cannot carry: a corked datagram, urgent data, an answer that waits in a netlink socket, layers of the kernel
 * on top of tcp where there are some. Those that this kernel has are told by name and number. */
#include "wl.h"
#include "sockopt.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
static void told(const char *name, int fd) { printf("%s %d\n", name, fd); }
static void pair(int protocol, int *client, int *server)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof(at);
	int ls = socket(AF_INET, SOCK_STREAM, protocol);
	*client = -1;
	if (ls < 0)
		return; /* a kernel without it */
	*client = socket(AF_INET, SOCK_STREAM, protocol);
	MUST(!bind(ls, (void *)&at, l) && !listen(ls, 1) && !getsockname(ls, (void *)&at, &l) && !connect(*client, (void *)&at, l));
	MUST((*server = accept(ls, NULL, NULL)) >= 0 && !close(ls));
}
int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(9) };
	struct { struct nlmsghdr h; struct rtgenmsg m; } ask = { { sizeof(ask), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 5, 0 }, { AF_UNSPEC } };
	struct pollfd urgent = { .events = POLLPRI };
	int udp, client, server;
	char c;
	wl_start(argc, argv);
	udp = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(set(udp, IPPROTO_UDP, 1 /* UDP_CORK */, 1) && sendto(udp, "corked", 6, 0, (void *)&at, sizeof(at)) == 6);
	told("corked", udp);
	pair(0, &client, &server);
	MUST(send(client, "u", 1, MSG_OOB) == 1);
	urgent.fd = server;
	MUST(poll(&urgent, 1, -1) == 1);
	told("urgent", server);
	int net = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	MUST(net >= 0 && send(net, &ask, sizeof(ask), 0) == sizeof(ask));
	told("netlink", net);
	pair(0, &client, &server);
	if (!setsockopt(client, IPPROTO_TCP, 31 /* TCP_ULP */, "tls", 4))
		told("tls", client);
	pair(262 /* IPPROTO_MPTCP */, &client, &server);
	if (client >= 0)
		told("mptcp", client);
	wl_wait();
	MUST(recv(net, &c, 1, 0) == 1 && recv(urgent.fd, &c, 1, MSG_OOB) == 1 && c == 'u');
	wl_ok();
}
