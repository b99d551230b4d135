"""The development users, the same for every provider; password = name."""

REALM = "hw"
CLIENT = "hw-web"
AUDIENCE = "hw-api"
USERS: dict[str, tuple[str, ...]] = {
    "alice": ("authors:read", "authors:write"),
    "bob": ("authors:read",),
    "carol": ("audit:read",),
    "dave": ("authors:read", "authors:write", "audit:read", "sessions:admin"),
}
