"""Every Redis key and channel the server uses."""

from urllib.parse import quote


class Keys:
    """Names of all keys and channels in Redis, and what is in them."""

    def __init__(self, prefix: str) -> None:
        self.revoked = (
            f"{prefix}revoked"  # DB 1, sorted set: `session:<id>`, `roles:<client>:<session id>` or
            # `user:<sub>` -> time its entry ends
        )
        self.revocations = f"{prefix}revocations"  # channel: `<time>|<entry>`
        self.topic_wake = f"{prefix}topic-wake"  # channel: events were committed
        self._prefix = prefix

    def session(self, session_id: str) -> str:
        """DB 1, hash: one session."""
        return f"{self._prefix}session:{session_id}"

    def user_sessions(self, sub: str) -> str:
        """DB 1, sorted set: session ids of a user, by the time they end."""
        return f"{self._prefix}sessions:{sub}"

    def signed_out(self, sub: str) -> str:
        """DB 1: which sessions the entry `user:<sub>` covers; JSON."""
        return f"{self._prefix}signed-out:{sub}"

    def narrowed(self, entry: str) -> str:
        """DB 1: which tokens an entry `roles:...` covers; JSON."""
        return f"{self._prefix}narrowed:{entry}"

    def logout_token(self, jti: str) -> str:
        """DB 1: exists while the logout token with this `jti` is a replay."""
        return f"{self._prefix}logout:{jti}"

    def rate(self, scope: str, who: str) -> str:
        """DB 0, hash: sliding window of one caller."""
        return f"{self._prefix}rate:{scope}:{who}"

    def sockets(self, sub: str) -> str:
        """DB 0, sorted set: open sockets of a user, by the end of their lease."""
        return f"{self._prefix}sockets:{sub}"

    def totals(self, name: str) -> str:
        """DB 0, hash: filters of a list -> its number of rows."""
        return f"{self._prefix}totals:{name}"

    def topic_meta(self, topic: str) -> str:
        """DB 0, hash: generation, epoch, offset and history bytes of a topic."""
        return f"{self._prefix}topic:meta:{quote(topic, safe='')}"

    def topic_history(self, topic: str) -> str:
        """DB 0, stream: the last events of a topic, by offset."""
        return f"{self._prefix}topic:history:{quote(topic, safe='')}"

    def topic_channel(self, topic: str) -> str:
        """Channel: `<epoch> <offset> <data>` of each event of a topic."""
        return f"{self._prefix}topic:{quote(topic, safe='')}"

    def topic_fence(self, partition: int, incarnation: str) -> str:
        """DB 0: the highest fencing number that published events of a partition. Per outbox, as a restored one may begin anew."""
        return f"{self._prefix}topic-fence:{incarnation}:{partition}"

    def topic_published(self, partition: int) -> str:
        """DB 0, set: events of a partition that were published and may still be in the outbox."""
        return f"{self._prefix}topic-published:{partition}"

    def topic_feed(self, process: str) -> str:
        """Channel: heartbeats of a process to itself, which prove that its subscription works."""
        return f"{self._prefix}topic-feed:{process}"
