"""The example feature: as `hw new resource authors --topic` writes one, with columns of its own."""

from hw_server.authors.operations import AUTHORS, operations
from hw_server.operations import Feature, Seed

feature = Feature(
    "authors",
    operations,
    conflicts={"authors_name_key": "an author with this name exists"},
    topics=(AUTHORS,),
    seed=Seed(
        "/authors",
        (
            {"name": "Ursula K. Le Guin", "born": "1929-10-21", "bio": "The Left Hand of Darkness"},
            {"name": "Italo Calvino", "born": "1923-10-15", "bio": "Invisible Cities"},
            {"name": "Toni Morrison", "born": "1931-02-18", "bio": "Beloved"},
            {"name": "Jorge Luis Borges", "born": "1899-08-24", "bio": "Ficciones"},
            {"name": "Wislawa Szymborska", "born": "1923-07-02", "bio": "View with a Grain of Sand"},
        ),
    ),
)
