/* Datagram sockets in multicast groups of both families on lo, and one in none; the interfaces they
 * send by. */
#include "wl.h"
#include "sockopt.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>

static int join(int s, int family, const char *address)
{
	struct group_req r = { .gr_interface = if_nametoindex("lo") };
	struct sockaddr_in *four = (void *)&r.gr_group;
	struct sockaddr_in6 *six = (void *)&r.gr_group;
	r.gr_group.ss_family = family;
	MUST(inet_pton(family, address, family == AF_INET ? (void *)&four->sin_addr : (void *)&six->sin6_addr) == 1);
	int level = family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
	return setsockopt(s, level, MCAST_JOIN_GROUP, &r, sizeof(r)) ? errno : 0;
}

int main(int argc, char **argv)
{
	wl_start(argc, argv);
	int udp = socket(AF_INET, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_DGRAM, 0);
	int raw = socket(AF_INET, SOCK_RAW, 253), none = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(udp >= 0 && raw >= 0 && none >= 0);
	MUST(!join(udp, AF_INET, "239.1.2.3") && !join(udp, AF_INET, "239.1.2.4") && !join(raw, AF_INET, "239.1.2.5"));
	MUST(six < 0 || (!join(six, AF_INET6, "ff02::1234") && !join(six, AF_INET, "239.1.2.3")));
	int lo = if_nametoindex("lo"), lo_n = htonl(lo);
	struct in_addr home = { htonl(INADDR_LOOPBACK) }, got = { 0 };
	MUST(!setsockopt(udp, IPPROTO_IP, IP_MULTICAST_IF, &home, sizeof(home)) && set(none, IPPROTO_IP, 50, lo_n));
	MUST(six < 0 || (set(six, IPPROTO_IPV6, IPV6_MULTICAST_IF, lo) && set(six, IPPROTO_IPV6, 76, lo_n)));
	wl_wait();
	socklen_t len = sizeof(got);
	MUST(!getsockopt(udp, IPPROTO_IP, IP_MULTICAST_IF, &got, &len) && got.s_addr == home.s_addr);
	MUST(opt(none, IPPROTO_IP, 50) == lo_n);
	MUST(six < 0 || (opt(six, IPPROTO_IPV6, IPV6_MULTICAST_IF) == lo && opt(six, IPPROTO_IPV6, 76) == lo_n));
	/* A second time is refused to a member, and to no other. */
	MUST(join(udp, AF_INET, "239.1.2.3") == EADDRINUSE && join(udp, AF_INET, "239.1.2.4") == EADDRINUSE);
	MUST(join(raw, AF_INET, "239.1.2.5") == EADDRINUSE);
	MUST(six < 0 || (join(six, AF_INET6, "ff02::1234") == EADDRINUSE && join(six, AF_INET, "239.1.2.3") == EADDRINUSE));
	MUST(!join(udp, AF_INET, "239.1.2.5") && !join(none, AF_INET, "239.1.2.3"));
	wl_ok();
}
