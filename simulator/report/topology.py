"""The report of `trainsim topology`.

Pinned by tests/studies/test_topology.py.
"""

from __future__ import annotations

from simulator.report.formats import count, quantity, seconds
from simulator.report.layout import Report, finished, heading, pairs, section, table
from simulator.studies.topology import Census


def topology_report(census: Census) -> Report:
    """Counts, tiers, links, bisection and sample routes of a machine."""
    cluster = census.cluster
    report = heading(cluster.name, cluster.description)
    rows = [
        ("kind", cluster.topology.kind),
        ("accelerator", cluster.platform),
        ("GPUs", count(census.gpus)),
        ("nodes", f"{count(census.nodes)} of {cluster.topology.gpus_per_node} GPUs"),
        ("scale-up domains", count(census.domains)),
    ]
    rows += [(f"{kind} oversubscription", text) for kind, text in _ratios(census)]
    return finished(
        [*report, *pairs("Machine", rows), *_tiers(census), *_bisection(census), *_routes(census)], census.warnings
    )


def _ratios(census: Census) -> list[tuple[str, str]]:
    """Bandwidth down over up by kind of switch, and the stated ratio where efficiencies make another of it."""
    stated = getattr(census.cluster.topology, "oversubscription", ())
    texts = []
    for tier, (kind, ratio) in enumerate(census.oversubscription.items()):
        text = f"{ratio:.4g} : 1"
        nominal = stated[tier] if tier < len(stated) else 1.0
        if abs(nominal / ratio - 1) > 1e-3:
            text += f" usable, {nominal:.4g} : 1 nominal"
        texts.append((kind, text))
    return texts


def _tiers(census: Census) -> Report:
    switches = table("", "count", "links of one")
    for each in census.switches:
        links = f"{each.fewest:,}" if each.fewest == each.most else f"{each.fewest:,} to {each.most:,}"
        switches.add_row(each.kind, count(each.count), links)
    cables = table("", "count", "of one", "together")
    for tier in census.links:
        one = quantity(tier.most, "B/s")
        if tier.least < tier.most:
            one = f"{quantity(tier.least, 'B/s')} to {one}"
        cables.add_row(tier.kind, count(tier.links), one, quantity(tier.total, "B/s"))
    title = "Links (parallel cables are one; per direction, efficiency applied)"
    return section("GPUs, NICs and switches", switches) + section(title, cables)


def _bisection(census: Census) -> Report:
    cut = census.bisection
    if cut is None:
        return []
    crossing = ", ".join(f"{count(links)} {kind}" for kind, links in cut.cut.items()) or "nothing: they are apart"
    return pairs(
        "Bisection bandwidth (maximum flow from the first half of the GPUs to the second, one direction)",
        [
            ("GPUs", f"gpu0 to gpu{cut.gpus[0] - 1} against gpu{cut.gpus[0]} to gpu{sum(cut.gpus) - 1}"),
            ("bandwidth", quantity(cut.bandwidth, "B/s")),
            ("per GPU", quantity(cut.bandwidth / cut.gpus[0], "B/s")),
            ("narrowest cut", f"{crossing} links"),
        ],
    )


def _routes(census: Census) -> Report:
    if not census.paths:
        return []
    drawn = table("to", "links", "latency", "alone", "over")
    drawn.columns[4].justify, drawn.columns[4].no_wrap = "left", False
    for path in census.paths:
        hops = f"{path.hops:.4g}"
        rate = quantity(path.bandwidth, "B/s")
        drawn.add_row(f"gpu{path.target}", hops, seconds(path.latency), rate, " ".join(path.passes[1:-1]) or "a link")
    return section("Routes from gpu0 (latency of wires and switches; the first of equal ways)", drawn)
