/* Tuns and taps in the host's network namespace: one with addresses and a route, a tap with settings of its own that is down, one that
 * persists, two queues of one, a descriptor that is attached to nothing. */
#include "wl.h"
#include <arpa/inet.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/ipv6.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/route.h>
#include <sys/ioctl.h>
static int control;
static int attach(const char *name, int flags)
{
	struct ifreq r = { .ifr_flags = flags };
	int fd = open("/dev/net/tun", O_RDWR);
	strcpy(r.ifr_name, name);
	MUST(fd >= 0 && !ioctl(fd, TUNSETIFF, &r));
	return fd;
}
static struct ifreq ask(int what, const char *name)
{
	struct ifreq r = { 0 };
	strcpy(r.ifr_name, name);
	MUST(!ioctl(control, what, &r));
	return r;
}
static void tell(int what, struct ifreq r) { MUST(!ioctl(control, what, &r)); }
static void address(int what, const char *name, const char *text)
{
	struct ifreq r = { 0 };
	struct sockaddr_in *a = (void *)&r.ifr_addr;
	strcpy(r.ifr_name, name);
	a->sin_family = AF_INET;
	a->sin_addr.s_addr = inet_addr(text);
	tell(what, r);
}
static char *copy_of(const char *path) { return strdup(slurp(path)); }
/* The IPv6 addresses without the word that one is still being tried (IFA_F_TENTATIVE, 0x40), which
   ends by itself: the flags are two digits at column 42. */
static char *addresses(void)
{
	char *all = copy_of("/proc/net/if_inet6");
	for (char *line = all; line && *line; line = strchr(line, '\n') + 1) {
		char digit[2] = { line[42] };
		line[42] = "0123456789abcdef"[strtol(digit, NULL, 16) & ~4];
	}
	return all;
}
int main(int argc, char **argv)
{
	struct ifreq r;
	struct { struct in6_addr addr; uint32_t len; int index; } six = { .len = 64 };
	int v, plain, tap, kept, one, two, alone;
	wl_start(argc, argv);
	control = socket(AF_INET, SOCK_DGRAM, 0);
	int control6 = socket(AF_INET6, SOCK_DGRAM, 0);
	plain = attach("wlplain", IFF_TUN | IFF_NO_PI);
	address(SIOCSIFADDR, "wlplain", "10.77.0.1");
	address(SIOCSIFNETMASK, "wlplain", "255.255.255.0");
	r = ask(SIOCGIFMTU, "wlplain");
	r.ifr_mtu = 1380;
	tell(SIOCSIFMTU, r);
	r = ask(SIOCGIFTXQLEN, "wlplain");
	r.ifr_qlen = 77;
	tell(SIOCSIFTXQLEN, r);
	r = ask(SIOCGIFFLAGS, "wlplain");
	r.ifr_flags |= IFF_UP;
	tell(SIOCSIFFLAGS, r);
	inet_pton(AF_INET6, "fd77::1", &six.addr);
	six.index = ask(SIOCGIFINDEX, "wlplain").ifr_ifindex;
	if (control6 >= 0)
		MUST(!ioctl(control6, SIOCSIFADDR, &six));
	struct rtentry to = { .rt_flags = RTF_UP, .rt_metric = 5, .rt_dev = "wlplain" };
	((struct sockaddr_in *)&to.rt_dst)->sin_family = ((struct sockaddr_in *)&to.rt_genmask)->sin_family = AF_INET;
	((struct sockaddr_in *)&to.rt_dst)->sin_addr.s_addr = inet_addr("10.78.0.0");
	((struct sockaddr_in *)&to.rt_genmask)->sin_addr.s_addr = inet_addr("255.255.0.0");
	MUST(!ioctl(control, SIOCADDRT, &to));
	tap = attach("wltap", IFF_TAP | IFF_VNET_HDR);
	MUST((v = 12, !ioctl(tap, TUNSETVNETHDRSZ, &v)) && (v = 20000, !ioctl(tap, TUNSETSNDBUF, &v)));
	MUST(!ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) && !ioctl(tap, TUNSETOWNER, 1234) && !ioctl(tap, TUNSETGROUP, 4321));
	r = ask(SIOCGIFHWADDR, "wltap");
	memcpy(r.ifr_hwaddr.sa_data, "\2\3\4\5\6\7", 6);
	tell(SIOCSIFHWADDR, r);
	kept = attach("wlkept", IFF_TUN);
	MUST(!ioctl(kept, TUNSETPERSIST, 1));
	one = attach("wlmany", IFF_TUN | IFF_MULTI_QUEUE);
	two = attach("wlmany", IFF_TUN | IFF_MULTI_QUEUE);
	alone = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	char *routes = copy_of("/proc/net/route"), *inet6 = addresses();
	int index = ask(SIOCGIFINDEX, "wlplain").ifr_ifindex;
	MUST(!ioctl(tap, TUNGETIFF, &r));
	int tap_flags = r.ifr_flags & 0xffff;
	int outgoing = socket(AF_INET, SOCK_DGRAM, 0);
	wl_wait();
	MUST(!ioctl(plain, TUNGETIFF, &r) && !strcmp(r.ifr_name, "wlplain"));
	MUST((r.ifr_flags & (IFF_TUN | IFF_NO_PI | IFF_PERSIST)) == (IFF_TUN | IFF_NO_PI));
	MUST(ask(SIOCGIFINDEX, "wlplain").ifr_ifindex == index && ask(SIOCGIFMTU, "wlplain").ifr_mtu == 1380);
	MUST(ask(SIOCGIFTXQLEN, "wlplain").ifr_qlen == 77 && ask(SIOCGIFFLAGS, "wlplain").ifr_flags & IFF_UP);
	MUST(!strcmp(routes, slurp("/proc/net/route")));
	if (strcmp(inet6, addresses()))
		fail("addresses were\n%s and are\n%s", inet6, addresses());
	/* a packet by the route comes out of the descriptor */
	struct sockaddr_in far = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = inet_addr("10.78.5.5") };
	unsigned char packet[2000];
	MUST(sendto(outgoing, "through", 7, 0, (void *)&far, sizeof(far)) == 7);
	do
		v = read(plain, packet, sizeof(packet));
	while (v > 0 && packet[0] != 0x45);
	MUST(v == 35 && !memcmp(packet + 28, "through", 7));
	MUST(!ioctl(tap, TUNGETIFF, &r) && (r.ifr_flags & 0xffff) == tap_flags);
	MUST(!ioctl(tap, TUNGETVNETHDRSZ, &v) && v == 12 && !ioctl(tap, TUNGETSNDBUF, &v) && v == 20000);
	MUST(!memcmp(ask(SIOCGIFHWADDR, "wltap").ifr_hwaddr.sa_data, "\2\3\4\5\6\7", 6) && !(ask(SIOCGIFFLAGS, "wltap").ifr_flags & IFF_UP));
	struct ethtool_value tso = { .cmd = ETHTOOL_GTSO };
	r = ask(SIOCGIFINDEX, "wltap");
	r.ifr_data = (void *)&tso;
	tell(SIOCETHTOOL, r);
	MUST(tso.data);
	char *owner = slurp("/sys/class/net/wltap/owner");
	MUST(!owner || atoi(owner) == 1234);
	MUST(!ioctl(kept, TUNGETIFF, &r) && r.ifr_flags & IFF_PERSIST && !strcmp(r.ifr_name, "wlkept"));
	MUST(!ioctl(one, TUNGETIFF, &r) && r.ifr_flags & IFF_MULTI_QUEUE && !ioctl(two, TUNGETIFF, &r) && !strcmp(r.ifr_name, "wlmany"));
	MUST(ioctl(alone, TUNGETIFF, &r) < 0 && errno == EBADFD && fcntl(alone, F_GETFL) & O_NONBLOCK);
	close(kept);
	kept = attach("wlkept", IFF_TUN);
	MUST(!ioctl(kept, TUNSETPERSIST, 0));
	wl_ok();
}
