/* Segments in an ipc namespace that others use too: one removed while attached, one with a key of
 * which the middle is unmapped and a page protected, both shared with a child. With the argument
 * "other" it only attaches the segment with the key. */
#include "wl.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#define PG 4096ul
#define KEY 0x5eed
int main(int argc, char **argv)
{
	struct shmid_ds ds;
	wl_start(argc, argv);
	if (argc > 2) {
		void *p = shmat(shmget(KEY, 0, 0), NULL, 0);
		MUST(p != (void *)-1);
		wl_wait();
		wl_ok();
	}
	int gone = shmget(IPC_PRIVATE, 3 * PG, IPC_CREAT | 0600);
	unsigned char *p = shmat(gone, NULL, 0);
	MUST(p != (void *)-1 && !shmctl(gone, IPC_RMID, NULL));
	int kept = shmget(KEY, 8 * PG, IPC_CREAT | IPC_EXCL | 0644);
	unsigned char *q = shmat(kept, NULL, 0);
	MUST(q != (void *)-1);
	pat_fill(p, 3 * PG, 1);
	pat_fill(q, 8 * PG, 2);
	MUST(!munmap(q + 3 * PG, 2 * PG) && !mprotect(q + 6 * PG, PG, PROT_READ));
	pid_t kid = fork();
	MUST(kid >= 0);
	if (kid == 0) {
		while (!wl_term)
			pause();
		MUST(p[7] == 0xaa && pat_ok(p + PG, 2 * PG, 1) == 0);
		p[8] = 0xbb;
		_exit(0);
	}
	wl_kids[wl_nkids++] = kid;
	wl_wait();
	MUST(pat_ok(p, 3 * PG, 1) && pat_ok(q, 3 * PG, 2));
	MUST(!shmctl(gone, IPC_STAT, &ds) && ds.shm_perm.mode & SHM_DEST && ds.shm_nattch == 2);
	MUST(shmget(KEY, 0, 0) == kept && !shmctl(kept, IPC_STAT, &ds));
	if (ds.shm_nattch != 8) /* four areas in each of two tasks */
		fail("attached %d times", (int)ds.shm_nattch);
	unsigned char *again = shmat(kept, NULL, SHM_RDONLY);
	MUST(again != (void *)-1 && pat_ok(again, 8 * PG, 2));
	p[7] = 0xaa;
	kill(kid, SIGTERM);
	int status;
	MUST(waitpid(kid, &status, 0) == kid && status == 0 && p[8] == 0xbb);
	wl_nkids = 0;
	MUST(!shmctl(kept, IPC_RMID, NULL));
	wl_ok();
}
