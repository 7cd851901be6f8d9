"""What a W&B service does for a sweep and its agents (wandb 0.31): it hands out trials, and says when one is to stop."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from wandb_store import ENTITY, Answer, Store, Variables

SWEEP = "ab12cd34"


class SweepStore(Store):
    """Holds one sweep, whose trials are given: run -> parameters.

    Once in each run's life it stops it, if `preempts(run)`, and hands it out again, as the service does with one that was preempted.
    """

    def __init__(self, trials: Mapping[str, Mapping[str, Any]], preempts: Callable[[str], bool] = lambda run: False) -> None:
        super().__init__()
        self.trials, self.preempts = trials, preempts
        self.waiting, self.preempted = list(trials), set[str]()
        self.sweep: dict[str, Any] = {}
        self.handed_out: list[str] = []

    def query_upsert_sweep(self, v: Variables) -> Answer:
        self.sweep = yaml.safe_load(v["config"])
        project = {"id": "1", "name": v["projectName"], "entity": {"id": "1", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}

    def query_sweep_with_runs(self, _: Variables) -> Answer:
        known = {"id": SWEEP, "name": SWEEP, "state": "RUNNING", "config": yaml.safe_dump(self.sweep), "runs": {"edges": []}}
        return {"project": {"sweep": known}}

    def query_create_agent(self, _: Variables) -> Answer:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def query_heartbeat(self, v: Variables) -> Answer:
        running = list(json.loads(v["runState"]))
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(self._commands(running))}}

    def _commands(self, running: Sequence[str]) -> list[dict[str, Any]]:
        for run in running:
            if run not in self.preempted and self.preempts(run):
                self.preempted.add(run)
                self.waiting.insert(0, run)
                return [{"type": "stop", "run_id": run}]
        if running:
            return []
        if not self.waiting:
            return [{"type": "exit"}]
        run = self.waiting.pop(0)
        self.handed_out.append(run)
        values = {name: {"value": value} for name, value in self.trials[run].items()}
        return [{"type": "run", "run_id": run, "program": self.sweep.get("program"), "args": values}]
