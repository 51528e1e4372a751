/* Sockets of the rarer kinds and options: udp-lite, raw, ping, packet with ring, membership and fanout, netlink with many groups and
 * its options; and options for which CRIU's images have no field. */
#include "wl.h"
#include "sockopt.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#ifndef ICMP_FILTER
#define ICMP_FILTER 1
#endif
int main(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, b;
	struct icmp6_filter f6, g6;
	struct tpacket_req3 ring = { 4096, 4, 2048, 8, 100, 0, 0 };
	struct packet_mreq promisc = { .mr_ifindex = 1, .mr_type = PACKET_MR_PROMISC };
	struct sockaddr_ll ll = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_LOOPBACK), .sll_ifindex = 1 }, lx;
	struct sockaddr_nl n = { .nl_family = AF_NETLINK, .nl_groups = 5 }, x;
	uint32_t groups[8] = { 0 }, again[8] = { 0 }, drop = 1 << ICMP_ECHO;
	char cc[16] = "reno", name[16] = "";
	socklen_t l = sizeof(a);
	wl_start(argc, argv);
	int lite = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), lite_to = -1;
	if (lite >= 0) { /* gone from kernels after 6.18 */
		MUST(!bind(lite, (void *)&a, sizeof(a)) && !getsockname(lite, (void *)&a, &l) && set(lite, IPPROTO_UDPLITE, 11, 8));
		lite_to = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
		MUST(set(lite_to, IPPROTO_UDPLITE, 10, 20) && !connect(lite_to, (void *)&a, sizeof(a)));
	}
	int raw = socket(AF_INET, SOCK_RAW, 253), icmp = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	b = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	MUST(raw >= 0 && set(raw, IPPROTO_IP, IP_HDRINCL, 1) && !connect(raw, (void *)&b, sizeof(b)));
	MUST(icmp >= 0 && !setsockopt(icmp, 255, ICMP_FILTER, &drop, sizeof(drop)));
	int raw6 = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), sum6 = socket(AF_INET6, SOCK_RAW, 253);
	ICMP6_FILTER_SETBLOCKALL(&f6);
	ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &f6);
	MUST(raw6 >= 0 && !setsockopt(raw6, IPPROTO_ICMPV6, ICMP6_FILTER, &f6, sizeof(f6)) && set(sum6, IPPROTO_IPV6, IPV6_CHECKSUM, 2));
	int range = open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY);
	if (range >= 0)
		MUST(write(range, "0 0", 3) == 3 && !close(range));
	int ping = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), id = 0; /* where ping_group_range lets us */
	if (ping >= 0) {
		b.sin_port = 0;
		MUST(!bind(ping, (void *)&b, sizeof(b)) && (l = sizeof(b)) && !getsockname(ping, (void *)&b, &l));
		id = b.sin_port;
	}
	int packet = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_LOOPBACK));
	MUST(packet >= 0 && set(packet, SOL_PACKET, PACKET_VERSION, TPACKET_V3) && set(packet, SOL_PACKET, PACKET_AUXDATA, 1));
	MUST(set(packet, SOL_PACKET, PACKET_TIMESTAMP, 2) && set(packet, SOL_PACKET, PACKET_RESERVE, 16));
	MUST(!setsockopt(packet, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)));
	MUST(!setsockopt(packet, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promisc, sizeof(promisc)));
	MUST(!bind(packet, (void *)&ll, sizeof(ll)) && set(packet, SOL_PACKET, PACKET_FANOUT, 0x1234 | PACKET_FANOUT_CPU << 16));
	int net = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);
	MUST(net >= 0 && !bind(net, (void *)&n, sizeof(n)) && (l = sizeof(n)) && !getsockname(net, (void *)&n, &l));
	MUST(set(net, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 34) && set(net, SOL_NETLINK, NETLINK_EXT_ACK, 1));
	MUST(set(net, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1));
	l = sizeof(groups);
	MUST(!getsockopt(net, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &l) && groups[1] == 2);
	int tcp = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(set(tcp, IPPROTO_TCP, TCP_USER_TIMEOUT, 1234) && set(tcp, IPPROTO_IP, IP_TRANSPARENT, 1));
	MUST(!setsockopt(tcp, IPPROTO_TCP, TCP_CONGESTION, cc, 4) && set(udp, IPPROTO_IP, IP_MULTICAST_TTL, 9));
	MUST(set(udp, IPPROTO_IP, IP_RECVERR, 1));
	wl_wait();
	if (lite >= 0) {
		MUST(opt(lite, IPPROTO_UDPLITE, 11) == 8 && opt(lite_to, IPPROTO_UDPLITE, 10) == 20);
		MUST(send(lite_to, "0123456789abcdefgh", 18, 0) == 18 && recv(lite, name, 16, MSG_TRUNC) == 18);
	}
	memset(name, 0, sizeof(name));
	l = sizeof(drop);
	drop = 0;
	MUST(opt(raw, IPPROTO_IP, IP_HDRINCL) == 1 && !getsockopt(icmp, 255, ICMP_FILTER, &drop, &l) && drop == 1 << ICMP_ECHO);
	MUST(opt(raw, SOL_SOCKET, SO_PROTOCOL) == 253 && opt(raw, SOL_SOCKET, SO_TYPE) == SOCK_RAW);
	char packet_out[20] = { 0x45, 0, 0, 20, 0, 0, 0, 0, 64, (char)253, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1 };
	MUST(send(raw, packet_out, 20, 0) == 20); /* it is connected */
	l = sizeof(g6);
	MUST(!getsockopt(raw6, IPPROTO_ICMPV6, ICMP6_FILTER, &g6, &l) && !memcmp(&f6, &g6, sizeof(f6)));
	MUST(opt(sum6, IPPROTO_IPV6, IPV6_CHECKSUM) == 2);
	if (ping >= 0) {
		struct icmphdr echo = { .type = ICMP_ECHO }, back;
		MUST((l = sizeof(b)) && !getsockname(ping, (void *)&b, &l) && b.sin_port == id);
		b.sin_port = 0;
		MUST(sendto(ping, &echo, sizeof(echo), 0, (void *)&b, sizeof(b)) == sizeof(echo));
		MUST(recv(ping, &back, sizeof(back), 0) == sizeof(back) && back.type == ICMP_ECHOREPLY);
	}
	struct tpacket_stats_v3 st;
	l = sizeof(lx);
	MUST(!getsockname(packet, (void *)&lx, &l) && lx.sll_ifindex == 1 && lx.sll_protocol == htons(ETH_P_LOOPBACK));
	MUST(opt(packet, SOL_PACKET, PACKET_VERSION) == TPACKET_V3 && opt(packet, SOL_PACKET, PACKET_AUXDATA) == 1);
	MUST(opt(packet, SOL_PACKET, PACKET_TIMESTAMP) == 2 && opt(packet, SOL_PACKET, PACKET_RESERVE) == 16);
	MUST((opt(packet, SOL_PACKET, PACKET_FANOUT) & 0xffffff) == (0x1234 | PACKET_FANOUT_CPU << 16));
	l = sizeof(st);
	MUST(!getsockopt(packet, SOL_PACKET, PACKET_STATISTICS, &st, &l) && l == sizeof(st)); /* that of a third version */
	MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, packet, 0) != MAP_FAILED); /* the ring is there */
	l = sizeof(x);
	MUST(!getsockname(net, (void *)&x, &l) && x.nl_pid == n.nl_pid && x.nl_groups == 5 && opt(net, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM);
	l = sizeof(again);
	MUST(!getsockopt(net, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, again, &l) && !memcmp(again, groups, sizeof(groups)));
	MUST(opt(net, SOL_NETLINK, NETLINK_EXT_ACK) == 1 && opt(net, SOL_NETLINK, NETLINK_NO_ENOBUFS) == 1);
	MUST(opt(tcp, IPPROTO_TCP, TCP_USER_TIMEOUT) == 1234 && opt(tcp, IPPROTO_IP, IP_TRANSPARENT) == 1);
	l = sizeof(name);
	MUST(!getsockopt(tcp, IPPROTO_TCP, TCP_CONGESTION, name, &l) && !strcmp(name, "reno"));
	MUST(opt(udp, IPPROTO_IP, IP_MULTICAST_TTL) == 9 && opt(udp, IPPROTO_IP, IP_RECVERR) == 1);
	wl_ok();
}
