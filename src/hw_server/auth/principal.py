"""The authenticated caller."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as a verified access token names it. Times are Unix time in seconds; `began_at` is when the user signed in
    (`auth_time`), or `issued_at` where the token does not say; `key` is the fingerprint of the key that signed the token."""

    sub: str
    username: str
    roles: frozenset[str]
    session_id: str
    client_id: str
    issued_at: float
    expires_at: float
    began_at: float
    key: str
    role_list: tuple[str, ...] = field(init=False)  # `roles`, sorted once for the audit rows

    @property
    def budget_key(self) -> str:
        """Whose limits what it does counts for."""
        return f"user:{self.sub}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "role_list", tuple(sorted(self.roles)))
