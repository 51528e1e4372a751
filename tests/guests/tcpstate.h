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

static inline void until(int fd, int wanted)
{
	while (state(fd) != wanted)
		usleep(1000);
}

#endif
