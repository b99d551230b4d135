"""${name.capitalize().replace("_", " ")}: a feature with its own table, served over both protocols."""

from hw_server.${name}.operations import ${upper + ', ' if topic else ''}operations
from hw_server.operations import Feature, ${"Reference, " if parent else ""}Seed

feature = Feature(
    "${name}",
    operations,
    conflicts={
        "${name}_name_key": "${article} ${words} with this name exists",
% if parent:
        "${name}_${parent.singular}_id_fkey": Reference(
            missing="there is no such ${parent.words}",
            used="the ${parent.words} has ${plural_words}; delete them first",
        ),
% endif
    },
% if topic:
    topics=(${upper},),
% endif
    seed=Seed(
        "${path}",
        (
            {"name": "First ${words}", "description": "A row for development"},
            {"name": "Second ${words}"},
            {"name": "Third ${words}"},
        ),
% if parent:
        references={"${parent.singular}_id": "${parent.path}"},
% endif
    ),
)
