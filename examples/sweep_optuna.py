"""A sweep of 200 trials in one process, with Optuna: a run for each trial. Trials that are pruned count as finished.

    pip install hubqueue optuna
    HUBQUEUE_CONFIG=examples/config.toml python examples/sweep_optuna.py && hubqueue drain

No trial waits for an upload: the worker sends what one has saved while the next ones train. At the end `hubqueue drain` waits
for the rest, or do nothing: the worker outlives this process.
"""

import argparse

import optuna

import hubqueue

STEPS = 10


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    # An exception ends the run as failed, with its name; `finish` before the end of the block says otherwise.
    with hubqueue.start_run("parabola", args=trial.params, name=f"trial-{trial.number:03}") as run:
        x = 5.0
        for step in range(STEPS):
            x -= lr * 2 * x
            run.log_metrics({"loss": x * x}, step=step)
            trial.report(x * x, step)
            if trial.should_prune():
                run.finish(timeout=0, results={"metrics": {"loss": x * x}, "pruned": step})
                raise optuna.TrialPruned
        run.finish(timeout=0, results={"metrics": {"loss": x * x}})
    return x * x


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    given = parser.parse_args()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    study.optimize(objective, n_trials=given.trials)
    print(f"best: {study.best_value:.3g} with {study.best_params}")
