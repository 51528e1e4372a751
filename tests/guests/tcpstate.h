/* The state of a tcp socket, as TCP_INFO tells it. */
#ifndef TCPSTATE_H
#define TCPSTATE_H
#include "wl.h"
#include <netinet/in.h>
#include <netinet/tcp.h>

static inline int state(int fd)
{
	struct tcp_info i;
	socklen_t l = sizeof(i);
	MUST(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &l));
	return i.tcpi_state;
}

/* Waits until the other end has acknowledged all that was sent: nothing is under way then. */
static inline void until_heard(int fd)
{
	struct tcp_info i;
	socklen_t l = sizeof(i);
	for (;; usleep(1000)) {
		MUST(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &l));
		if (!i.tcpi_unacked)
			return;
	}
}

static inline void until(int fd, int wanted)
{
	while (state(fd) != wanted)
		usleep(1000);
}

#endif
