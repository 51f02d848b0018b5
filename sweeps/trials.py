"""Many finished Optuna trials at once, in one transaction.

Optuna adds one trial at a time, in about fifteen questions to its database. Here the same rows go
in by Optuna's own tables, all trials or none. Where that fails, Optuna adds one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
import sqlalchemy as sql
from optuna.distributions import distribution_to_json

#: The layout of Optuna's tables that is known here.
LAYOUT = 12


def add_together(
    engine: sql.Engine, study_name: str, trials: Sequence[optuna.trial.FrozenTrial], number: int
) -> None:
    """Add finished trials of one objective to a study, in one transaction.

    Args:
        engine: of the database with Optuna's tables.
        study_name: the study.
        trials: from `optuna.trial.create_trial`.
        number: that of the first one, which is how many trials the study has.

    Raises:
        Exception: nothing was written, unless the answer alone was lost.
    """
    from optuna.storages._rdb import models

    if models.SCHEMA_VERSION != LAYOUT:
        raise NotImplementedError(f"Optuna's tables have layout {models.SCHEMA_VERSION}")
    studies, table = models.StudyModel.__table__.c, models.TrialModel.__table__
    with engine.begin() as connection:
        # Optuna locks the study in the same way while it counts its trials.
        mine = sql.select(studies.study_id).where(studies.study_name == study_name)
        study = connection.execute(mine.with_for_update()).scalar_one()
        here = table.c.study_id == study
        count = connection.scalar(sql.select(sql.func.count()).select_from(table).where(here))
        if count != number:
            raise ValueError(f"study {study_name!r} has {count} trials, not {number}")
        connection.execute(
            table.insert(), [_row(study, number + i, t) for i, t in enumerate(trials)]
        )
        new = sql.select(table.c.trial_id).where(here, table.c.number >= number)
        identities = connection.scalars(new.order_by(table.c.number)).all()
        for model, rows in _details(models, list(zip(identities, trials, strict=True))).items():
            if rows:
                connection.execute(model.__table__.insert(), rows)


def _row(study: int, number: int, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {
        "study_id": study,
        "number": number,
        "state": trial.state,
        "datetime_start": _utc(trial.datetime_start),
        "datetime_complete": _utc(trial.datetime_complete),
    }


def _utc(local: datetime | None) -> datetime | None:
    """Optuna gives local times and keeps those of UTC, both without their zone."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def _details(
    models: Any, trials: Sequence[tuple[int, optuna.trial.FrozenTrial]]
) -> dict[Any, list[dict[str, Any]]]:
    """The rows of parameters, values and attributes, by Optuna's model of each."""
    stored = models.TrialValueModel.value_to_stored_repr
    return {
        models.TrialParamModel: [
            {
                "trial_id": identity,
                "param_name": name,
                "param_value": given.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(given),
            }
            for identity, trial in trials
            for name, given in trial.distributions.items()
        ],
        models.TrialValueModel: [
            {"trial_id": identity, "objective": 0, "value": value, "value_type": kind}
            for identity, trial in trials
            for value, kind in [stored(trial.value)]
        ],
        models.TrialUserAttributeModel: [
            {"trial_id": identity, "key": key, "value_json": json.dumps(value)}
            for identity, trial in trials
            for key, value in trial.user_attrs.items()
        ],
    }
