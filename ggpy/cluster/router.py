"""The replica that a request goes to, as Ray Serve asks for it in the server's process."""

from __future__ import annotations

from hashlib import sha256

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ConversationRouter(RequestRouter):
    """Requests of one key (Ray's `session_id`) go to one replica; to the least busy of the others while that is full.

    By rendezvous hashing: a key's replica is the one whose hash with it is the highest. So several servers agree
    without a memory, and a replica more or less moves only its share of the keys. Ray's own `ConsistentHashRouter` is
    experimental, and goes on to the next of its ring, busy or not. Requests were seen to wait for ever with it (2.60,
    calls by reference, two servers that share a full replica), but not since calls go by gRPC: the cause is not known.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas that take it, those first that are tried first; of a list the least busy one."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # before they are asked again, if all are full
        key = pending_request.metadata.session_id
        if not key:
            return [candidate_replicas]

        def rank(replica: RunningReplica) -> bytes:
            return sha256(f"{key} {replica.replica_id.unique_id}".encode()).digest()

        home = max(candidate_replicas, key=rank)
        return [[home], [replica for replica in candidate_replicas if replica is not home]]
