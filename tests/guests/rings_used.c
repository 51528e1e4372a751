/* A packet socket whose mapped ring has had a frame. */
#include "wl.h"
#include "sockopt.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
int main(int argc, char **argv)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = 1, .sll_halen = 6 };
	struct tpacket_req ring = { 4096, 4, 2048, 8 };
	wl_start(argc, argv);
	int fd = socket(AF_PACKET, SOCK_DGRAM, 0);
	MUST(set(fd, SOL_PACKET, PACKET_VERSION, TPACKET_V2) && !setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)));
	MUST(!bind(fd, (void *)&to, sizeof(to)));
	volatile struct tpacket2_hdr *first = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct pollfd wait = { fd, POLLIN, 0 };
	MUST(first != MAP_FAILED && sendto(fd, "frame", 5, 0, (void *)&to, sizeof(to)) == 5);
	while (!(first->tp_status & TP_STATUS_USER))
		MUST(poll(&wait, 1, -1) == 1);
	first->tp_status = TP_STATUS_KERNEL;
	wl_wait();
	MUST(first->tp_snaplen == 5);
	wl_ok();
}
