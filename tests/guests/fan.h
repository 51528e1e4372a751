/* What waits in a fanotify group. */
#include <sys/fanotify.h>

/* Takes all that waits in a group; tells whether something in the mask was there. */
static int drain(int fd, uint64_t mask)
{
	char b[8192] __attribute__((aligned(8)));
	int n = read(fd, b, sizeof(b)), hit = 0;
	struct fanotify_event_metadata *m = (void *)b;
	for (; FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n)) {
		hit |= !!(m->mask & mask);
		if (m->fd >= 0)
			close(m->fd);
	}
	return hit;
}
