"""The one base class of the project's data models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A frozen record, camelCase on the wire and snake_case in Python; an unknown field is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class OpenModel(Model):
    """A record written by a newer version may hold more: unknown fields are ignored, so that a rollback can read it."""

    model_config = ConfigDict(extra="ignore")
