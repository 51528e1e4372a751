/* Packet sockets whose rings are mapped: frames that are sent by the one are received in the other, in the first frame of each; blocks of
 * the third version. */
#include "wl.h"
#include "sockopt.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#define KIND 0x88b5 /* for experiments */
#define FRAMES 8
static int packet(int version)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(KIND), .sll_ifindex = 1 };
	struct tpacket_req3 ring = { 4096, 4, 2048, FRAMES, 60, 0, 0 };
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	socklen_t l = version == TPACKET_V3 ? sizeof(ring) : sizeof(struct tpacket_req);
	MUST(fd >= 0 && set(fd, SOL_PACKET, PACKET_VERSION, version));
	MUST(!setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, l));
	if (version == TPACKET_V2)
		MUST(!setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &ring, l));
	MUST(!bind(fd, (void *)&to, sizeof(to)));
	return fd;
}
int main(int argc, char **argv)
{
	struct ifreq lo = { .ifr_name = "lo" };
	wl_start(argc, argv);
	int two = packet(TPACKET_V2), three = packet(TPACKET_V3), control = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(!ioctl(control, SIOCGIFFLAGS, &lo) && lo.ifr_flags & IFF_UP);
	char *rx = mmap(NULL, 2 * 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, two, 0), *tx = rx + 4 * 4096;
	char *blocks = mmap(NULL, 4 * 4096, PROT_READ, MAP_SHARED, three, 0);
	MUST(rx != MAP_FAILED && blocks != MAP_FAILED);
	wl_wait();
	for (int i = 0; i < FRAMES + 3; i++) {
		volatile struct tpacket2_hdr *out = (void *)(tx + i % FRAMES * 2048), *in = (void *)(rx + i % FRAMES * 2048);
		struct ether_header *frame = (void *)((char *)out + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll));
		struct pollfd wait = { two, POLLIN, 0 };
		MUST(out->tp_status == TP_STATUS_AVAILABLE);
		memset(frame, 0, sizeof(*frame));
		frame->ether_type = htons(KIND);
		memset(frame + 1, 'a' + i, 100);
		out->tp_len = sizeof(*frame) + 100;
		out->tp_status = TP_STATUS_SEND_REQUEST;
		MUST(send(two, NULL, 0, 0) == (int)sizeof(*frame) + 100);
		while (!(in->tp_status & TP_STATUS_USER))
			MUST(poll(&wait, 1, -1) == 1);
		MUST(in->tp_snaplen == sizeof(*frame) + 100 && ((char *)in)[in->tp_mac + 14] == 'a' + i);
		in->tp_status = TP_STATUS_KERNEL;
	}
	volatile struct tpacket_block_desc *block = (void *)blocks;
	struct pollfd wait = { three, POLLIN, 0 };
	while (!(block->hdr.bh1.block_status & TP_STATUS_USER))
		MUST(poll(&wait, 1, -1) == 1);
	MUST(block->hdr.bh1.num_pkts >= 1 && block->hdr.bh1.seq_num == 1);
	wl_ok();
}
