/* Every option that can be read of sockets of many kinds, of which all that can be set have unusual values: what getsockopt(2) answers
 * must be the same for each number of each level. /proc tells nothing of them. */
#include "wl.h"
#include "sockopt.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#define ROOM 64
#define NAMES 120
#define LEVELS (int)(sizeof(levels) / sizeof(*levels))
static const int levels[] = { SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK, SOL_PACKET };
enum { TCP4, TCP6, LISTENER, CLIENT, SERVER, UDP4, UDP6, RAW4, RAW6, STREAM, DGRAM, NETLINK, PACKET, KINDS };
static const char *kinds[] = { "tcp", "tcp6", "listener", "client", "server", "udp", "udp6", "raw", "raw6", "unix stream", "unix dgram",
	"netlink", "packet" };
static int fd[KINDS];
static struct answer { int len, error; unsigned char bytes[ROOM]; } before[KINDS][LEVELS][NAMES];
/* What is no setting: the state of connections and queues, counters, errors, numbers that are new in each life. */
static const struct { int level, name; } moving[] = {
	{ SOL_SOCKET, SO_ERROR }, { SOL_SOCKET, 55 /* MEMINFO */ }, { SOL_SOCKET, 57 /* COOKIE */ }, { SOL_SOCKET, 56 /* NAPI_ID */ },
	{ SOL_SOCKET, 71 /* NETNS_COOKIE */ }, { SOL_SOCKET, 77 /* PEERPIDFD */ },
	{ IPPROTO_TCP, TCP_INFO }, { IPPROTO_TCP, 26 /* CC_INFO */ }, { IPPROTO_TCP, 24 /* TIMESTAMP */ }, { IPPROTO_TCP, 35 /* ZEROCOPY */ },
	{ IPPROTO_TCP, TCP_QUICKACK }, { IPPROTO_IP, IP_MTU }, { IPPROTO_IPV6, IPV6_MTU }, { IPPROTO_IP, 9 /* PKTOPTIONS */ }, { SOL_PACKET, PACKET_STATISTICS },
};
static const struct { int level, name, value; } unusual[] = {
	{ SOL_SOCKET, SO_REUSEADDR, 1 }, { SOL_SOCKET, SO_BROADCAST, 1 }, { SOL_SOCKET, SO_KEEPALIVE, 1 }, { SOL_SOCKET, SO_OOBINLINE, 1 },
	{ SOL_SOCKET, SO_NO_CHECK, 1 }, { SOL_SOCKET, SO_REUSEPORT, 1 }, { SOL_SOCKET, SO_PASSCRED, 1 }, { SOL_SOCKET, SO_RCVLOWAT, 3 },
	{ SOL_SOCKET, SO_TIMESTAMPNS, 1 }, { SOL_SOCKET, SO_TIMESTAMPING, 0x58 }, { SOL_SOCKET, SO_MARK, 9 }, { SOL_SOCKET, SO_RXQ_OVFL, 1 },
	{ SOL_SOCKET, SO_SELECT_ERR_QUEUE, 1 }, { SOL_SOCKET, SO_BUSY_POLL, 11 }, { SOL_SOCKET, SO_MAX_PACING_RATE, 123456 },
	{ SOL_SOCKET, SO_ZEROCOPY, 1 }, { SOL_SOCKET, 69 /* PREFER_BUSY_POLL */, 1 }, { SOL_SOCKET, 70 /* BUDGET */, 5 },
	{ SOL_SOCKET, 74 /* TXREHASH */, 0 }, { SOL_SOCKET, 75 /* RCVMARK */, 1 }, { SOL_SOCKET, 76 /* PASSPIDFD */, 1 },
	{ SOL_SOCKET, 82 /* RCVPRIORITY */, 1 }, { SOL_SOCKET, SO_DEBUG, 1 }, { SOL_SOCKET, SO_RCVBUF, 70000 }, { SOL_SOCKET, SO_SNDBUF, 60000 },
	{ SOL_SOCKET, SO_NOFCS, 1 }, { SOL_SOCKET, SO_INCOMING_CPU, 0 },
	{ IPPROTO_IP, IP_TOS, 16 }, { IPPROTO_IP, IP_TTL, 99 }, { IPPROTO_IP, IP_RECVOPTS, 1 }, { IPPROTO_IP, IP_RETOPTS, 1 },
	{ IPPROTO_IP, IP_PKTINFO, 1 }, { IPPROTO_IP, IP_MTU_DISCOVER, 0 }, { IPPROTO_IP, IP_RECVERR, 1 }, { IPPROTO_IP, IP_RECVTTL, 1 },
	{ IPPROTO_IP, IP_RECVTOS, 1 }, { IPPROTO_IP, IP_FREEBIND, 1 }, { IPPROTO_IP, IP_TRANSPARENT, 1 }, { IPPROTO_IP, 20, 1 },
	{ IPPROTO_IP, 21 /* MINTTL */, 3 }, { IPPROTO_IP, 22 /* NODEFRAG */, 1 }, { IPPROTO_IP, 23 /* CHECKSUM */, 1 },
	{ IPPROTO_IP, 24 /* BIND_NO_PORT */, 1 }, { IPPROTO_IP, 25 /* RECVFRAGSIZE */, 1 }, { IPPROTO_IP, 26 /* RFC4884 */, 1 },
	{ IPPROTO_IP, IP_MULTICAST_TTL, 8 }, { IPPROTO_IP, IP_MULTICAST_LOOP, 0 }, { IPPROTO_IP, 49 /* MULTICAST_ALL */, 0 },
	{ IPPROTO_IP, 51 /* LOCAL_PORT_RANGE */, 40000 | 50000 << 16 }, { IPPROTO_IP, IP_HDRINCL, 1 },
	{ IPPROTO_IPV6, IPV6_UNICAST_HOPS, 98 }, { IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 7 }, { IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0 },
	{ IPPROTO_IPV6, IPV6_MTU_DISCOVER, 0 }, { IPPROTO_IPV6, IPV6_RECVERR, 1 }, { IPPROTO_IPV6, 29 /* MULTICAST_ALL */, 0 },
	{ IPPROTO_IPV6, 31 /* RFC4884 */, 1 }, { IPPROTO_IPV6, IPV6_RECVPKTINFO, 1 }, { IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1 },
	{ IPPROTO_IPV6, IPV6_RECVHOPOPTS, 1 }, { IPPROTO_IPV6, IPV6_RECVRTHDR, 1 }, { IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1 },
	{ IPPROTO_IPV6, 60 /* RECVPATHMTU */, 1 }, { IPPROTO_IPV6, 62 /* DONTFRAG */, 1 }, { IPPROTO_IPV6, IPV6_RECVTCLASS, 1 },
	{ IPPROTO_IPV6, IPV6_TCLASS, 32 }, { IPPROTO_IPV6, 33 /* FLOWINFO_SEND */, 1 }, { IPPROTO_IPV6, 11 /* FLOWINFO */, 1 },
	{ IPPROTO_IPV6, 70 /* AUTOFLOWLABEL */, 0 }, { IPPROTO_IPV6, 72 /* ADDR_PREFERENCES */, 2 }, { IPPROTO_IPV6, 73 /* MINHOPCOUNT */, 4 },
	{ IPPROTO_IPV6, 74 /* RECVORIGDSTADDR */, 1 }, { IPPROTO_IPV6, 77 /* RECVFRAGSIZE */, 1 }, { IPPROTO_IPV6, 78 /* FREEBIND */, 1 },
	{ IPPROTO_IPV6, 75 /* TRANSPARENT */, 1 },
	{ IPPROTO_TCP, TCP_NODELAY, 1 }, { IPPROTO_TCP, TCP_KEEPIDLE, 71 }, { IPPROTO_TCP, TCP_KEEPINTVL, 12 }, { IPPROTO_TCP, TCP_KEEPCNT, 4 },
	{ IPPROTO_TCP, TCP_SYNCNT, 3 }, { IPPROTO_TCP, TCP_LINGER2, 17 }, { IPPROTO_TCP, TCP_DEFER_ACCEPT, 5 },
	{ IPPROTO_TCP, 16 /* THIN_LINEAR_TIMEOUTS */, 1 }, { IPPROTO_TCP, TCP_USER_TIMEOUT, 7777 }, { IPPROTO_TCP, 25 /* NOTSENT_LOWAT */, 8888 },
	{ IPPROTO_TCP, 27 /* SAVE_SYN */, 1 }, { IPPROTO_TCP, 30 /* FASTOPEN_CONNECT */, 1 }, { IPPROTO_TCP, 34 /* FASTOPEN_NO_COOKIE */, 1 },
	{ IPPROTO_TCP, 36 /* INQ */, 1 }, { IPPROTO_TCP, 37 /* TX_DELAY */, 1000 }, { IPPROTO_TCP, 44 /* RTO_MAX_MS */, 50000 },
	{ IPPROTO_TCP, TCP_MAXSEG, 1000 }, { IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000 }, { IPPROTO_TCP, TCP_FASTOPEN, 6 },
	{ IPPROTO_UDP, 101 /* NO_CHECK6_TX */, 1 }, { IPPROTO_UDP, 102 /* NO_CHECK6_RX */, 1 }, { IPPROTO_UDP, 103 /* SEGMENT */, 500 },
	{ IPPROTO_UDP, 104 /* GRO */, 1 },
	{ SOL_NETLINK, NETLINK_PKTINFO, 1 }, { SOL_NETLINK, NETLINK_BROADCAST_ERROR, 1 }, { SOL_NETLINK, NETLINK_NO_ENOBUFS, 1 },
	{ SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1 }, { SOL_NETLINK, NETLINK_CAP_ACK, 1 }, { SOL_NETLINK, NETLINK_EXT_ACK, 1 },
	{ SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1 },
	{ SOL_PACKET, PACKET_AUXDATA, 1 }, { SOL_PACKET, PACKET_ORIGDEV, 1 }, { SOL_PACKET, PACKET_VERSION, 1 },
	{ SOL_PACKET, PACKET_RESERVE, 32 }, { SOL_PACKET, PACKET_LOSS, 1 }, { SOL_PACKET, PACKET_TIMESTAMP, 8 },
	{ SOL_PACKET, 23 /* IGNORE_OUTGOING */, 1 }, { SOL_PACKET, PACKET_VNET_HDR, 1 }, { SOL_PACKET, PACKET_QDISC_BYPASS, 1 },
};
static int moves(int kind, int level, int name)
{
	/* what was agreed for a connection, and the time to live of its first packet */
	int agreed = level == IPPROTO_TCP && (name == TCP_MAXSEG || name == TCP_WINDOW_CLAMP);
	/* the processor of its last packet */
	if ((kind == CLIENT || kind == SERVER) && level == SOL_SOCKET && name == SO_INCOMING_CPU)
		return 1;
	if ((kind == CLIENT || kind == SERVER) && (agreed || (level == IPPROTO_IP && name == IP_MULTICAST_TTL)))
		return 1;
	for (unsigned i = 0; i < sizeof(moving) / sizeof(*moving); i++)
		if (moving[i].level == level && moving[i].name == name)
			return 1;
	return 0;
}
static void ask(int kind, int level, int name, struct answer *a)
{
	socklen_t l = ROOM;
	memset(a, 0, sizeof(*a));
	a->error = getsockopt(fd[kind], levels[level], name, a->bytes, &l) ? errno : 0;
	a->len = a->error ? 0 : (int)l;
}
int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sock_filter keep[] = { { BPF_RET | BPF_K, 0, 0, 0xffffffff } };
	struct sock_fprog prog = { 1, keep };
	socklen_t l = sizeof(at);
	struct { int clock; unsigned flags; } txtime = { CLOCK_TAI, 3 };
	unsigned char pad[8] = { 0, 0, 1, 4 }, route[24] = { 0, 2, 4 /* segments */ };
	int pair[2], wrong = 0;
	wl_start(argc, argv);
	fd[TCP4] = socket(AF_INET, SOCK_STREAM, 0);
	fd[TCP6] = socket(AF_INET6, SOCK_STREAM, 0);
	fd[LISTENER] = socket(AF_INET, SOCK_STREAM, 0);
	MUST(!bind(fd[LISTENER], (void *)&at, l) && !listen(fd[LISTENER], 9) && !getsockname(fd[LISTENER], (void *)&at, &l));
	fd[CLIENT] = socket(AF_INET, SOCK_STREAM, 0);
	MUST(!connect(fd[CLIENT], (void *)&at, l) && (fd[SERVER] = accept(fd[LISTENER], NULL, NULL)) >= 0);
	fd[UDP4] = socket(AF_INET, SOCK_DGRAM, 0);
	fd[UDP6] = socket(AF_INET6, SOCK_DGRAM, 0);
	fd[RAW4] = socket(AF_INET, SOCK_RAW, 253);
	fd[RAW6] = socket(AF_INET6, SOCK_RAW, 253);
	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fd[STREAM] = pair[0];
	fd[DGRAM] = socket(AF_UNIX, SOCK_DGRAM, 0);
	fd[NETLINK] = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	fd[PACKET] = socket(AF_PACKET, SOCK_RAW, 0);
	for (int k = 0; k < KINDS; k++) {
		MUST(fd[k] >= 0);
		if (k == SERVER)
			continue; /* stays as accept(2) made it */
		for (unsigned i = 0; i < sizeof(unusual) / sizeof(*unusual); i++)
			(void)!set(fd[k], unusual[i].level, unusual[i].name, unusual[i].value); /* not every kind has it */
		if (k == UDP4 || k == UDP6 || k == PACKET)
			MUST(!setsockopt(fd[k], SOL_SOCKET, 61 /* TXTIME */, &txtime, sizeof(txtime)));
		if (k == UDP6 || k == RAW6 || k == TCP6) {
			MUST(!setsockopt(fd[k], IPPROTO_IPV6, IPV6_HOPOPTS, pad, sizeof(pad)));
			MUST(!setsockopt(fd[k], IPPROTO_IPV6, IPV6_DSTOPTS, pad, sizeof(pad)));
			MUST(!setsockopt(fd[k], IPPROTO_IPV6, IPV6_RTHDRDSTOPTS, pad, sizeof(pad)));
			route[23] = 1; /* the last byte of its one address */
			MUST(!setsockopt(fd[k], IPPROTO_IPV6, IPV6_RTHDR, route, sizeof(route)));
		}
		(void)!setsockopt(fd[k], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog));
		if (k != LISTENER && k != CLIENT)
			(void)!set(fd[k], SOL_SOCKET, SO_LOCK_FILTER, 1);
		if (k == TCP4 || k == UDP4 || k == UDP6)
			MUST(!setsockopt(fd[k], SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
	}
	for (int k = 0; k < KINDS; k++)
		for (int v = 0; v < LEVELS; v++)
			for (int n = 0; n < NAMES; n++)
				if (!moves(k, levels[v], n))
					ask(k, v, n, &before[k][v][n]);
	wl_wait();
	for (int k = 0; k < KINDS; k++)
		for (int v = 0; v < LEVELS; v++)
			for (int n = 0; n < NAMES; n++) {
				struct answer now, *then = &before[k][v][n];
				if (moves(k, levels[v], n))
					continue;
				ask(k, v, n, &now);
				if (memcmp(&now, then, sizeof(now)) == 0)
					continue;
				wrong++;
				printf("%s: level %d option %d was %d bytes %d %d (error %d), is %d bytes %d %d (error %d)\n", kinds[k], levels[v], n,
				       then->len, ((int *)then->bytes)[0], ((int *)then->bytes)[1], then->error,
				       now.len, ((int *)now.bytes)[0], ((int *)now.bytes)[1], now.error);
			}
	if (wrong)
		fail("%d options differ", wrong);
	wl_ok();
}
