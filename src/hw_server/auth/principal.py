from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as a verified access token names it. `expires_at` is Unix time in seconds."""

    sub: str
    username: str
    roles: frozenset[str]
    session_id: str
    client_id: str
    issued_at: float
    expires_at: float
    role_list: tuple[str, ...] = field(init=False)  # `roles`, sorted once for the audit rows

    def __post_init__(self) -> None:
        object.__setattr__(self, "role_list", tuple(sorted(self.roles)))
