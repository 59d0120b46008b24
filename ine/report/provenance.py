"""Where the figures of a grid came from: models, prompts, rules, versions, commands."""

from ine.evaluation.grid_file import list_grids
from ine.evaluation.result import Run
from ine.report.rows import NOT_MADE
from ine.report.values import Section, Table


def provenance(run: Run) -> dict[str, str | list[str]]:
    """Return what is needed to run the grid again."""
    about = run.about
    judges = about.get("judges") or {}
    rules = {
        name: (f"{name}: detector {facts['detector']}", facts["source"], facts.get("note"))
        for name, facts in about["rules"].items()
    }
    concept = about.get("concept")
    samplers = {name: facts["sampler"] for name, facts in about["models"].items()}
    return {
        "grid": f"{run.grid.name}, digest {about['digest']}",
        "concept": concept["name"] if concept else run.grid.concept or "not named",
        "the grid file": run.text.splitlines(),
        "models": [
            f"{name}: {facts['name']}; digest {facts['digest']}"
            for name, facts in about["models"].items()
        ],
        "sampler": [f"{name}: {sampler}" for name, sampler in samplers.items()]
        if len(set(samplers.values())) > 1
        else "".join(set(samplers.values())),
        "prompt sets": [
            f"{name}: {facts['source']}, sha256 {facts['sha256'] or 'of no file'}"
            for name, facts in run.sets.items()
        ],
        "pictures": [
            f"{name}: {facts['pictures']} of {facts['rows']} prompts for each seed"
            for name, facts in run.sets.items()
        ],
        "seeds": ", ".join(map(str, about["seeds"])),
        "rules": ["; ".join(filter(None, texts)) for texts in rules.values()],
        "judges": ", ".join(f"{k}: {v or 'each rule its own'}" for k, v in judges.items()),
        "95% intervals": _intervals(run),
        "features": str(about.get("features")),
        "pictures made by": list(about["pictures_made_by"]),
        "scored by": about["scored_by"],
        "commands": [command_of(run), "ine report ."],
    }


def _intervals(run: Run) -> list[str]:
    """Return how intervals were computed, and of which figures."""
    found: dict[str, dict[str, None]] = {}
    for figure in run.figures:
        found.setdefault(figure.interval, {})[figure.metric] = None
    return [f"{how}: {', '.join(metrics)}" for how, metrics in found.items()]


def command_of(run: Run) -> str:
    """Return the command that makes this run again, from its folder."""
    own = list_grids().get(run.grid.name)
    name = run.grid.name if own and own.read_text() == run.text else f"{run.grid.name}.yaml"
    limit = f" --limit {run.about['limit']}" if run.about["limit"] else ""
    only = "".join(f" --only {text}" for text in run.about["only"])
    return f"ine evaluate {name} --out .{limit}{only}"


def sets_section(run: Run) -> Section:
    """Return what became of every prompt set's rows."""
    table = Table(
        "What was read",
        "Refused rows were left out by screening (docs/prompts.md) and are shown nowhere; "
        "about.json has their row numbers and a digest. Duplicates are counted in the whole "
        "source.",
        [
            *("set", "role", "expects", "source", "read", "refused", "duplicates", "used"),
            *("pictures a cell", "SHA-256"),
        ],
        [
            [
                *(name, facts["role"], facts["expects"], facts["source"]),
                *(str(facts["read"]), str(facts["refused"]), str(facts["duplicates"])),
                *(str(facts["rows"]), str(facts["pictures"]), facts["sha256"][:16] or NOT_MADE),
            ]
            for name, facts in run.sets.items()
        ],
    )
    return Section("Prompt sets", tables=[table])
