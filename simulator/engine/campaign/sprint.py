"""Plain campaigns in one loop: from failure to failure without looking at what the plan does not have.

One phase, one tier on storage that survives everything, crashes and hangs, restarts with machines that stand by: what
most studies sweep, and what is left of a campaign when nothing special happens. The loop does what the job does, in the
same order and with the same arithmetic, and stops wherever something else comes up: a machine that has to be waited
for, silent corruption, a planned stop, a failure during a restart, the end of the run. The job then goes on from there,
so that the records are the same to the last bit; only the clock is not moved at each failure.

Pinned by tests/engine/campaign/test_sprint.py.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

from simulator.engine.campaign import hopeless
from simulator.engine.campaign.events import plan_lemons
from simulator.engine.campaign.history import Save
from simulator.engine.campaign.training import pace_now, timetable
from simulator.physics.campaign.plan import ALL_MACHINES, CampaignPlan, JobFailure

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job


def is_plain(plan: CampaignPlan) -> bool:
    """Whether the loop knows all that lasts in this plan, and what comes and goes can be left to the job."""
    if len(plan.phases) > 1 or len(plan.phases[0].tiers) > 1 or plan.policy != "restart":
        return False
    if plan.slow or plan.evaluation is not None or plan.diurnal[0]:
        return False
    tier = plan.phases[0].tiers[0]
    if tier.seconds is not None or tier.survives < ALL_MACHINES or plan.lemons.retire_after:
        return False
    lemons = any(failure.lemon_share for failure in plan.failures)
    if lemons and (plan.failures_during_restart or not _is_simple(plan)):
        return False
    return all(each.effect != "rewind" for each in plan.failures)  # which needs saves that the loop forgets


def _is_simple(plan: CampaignPlan) -> bool:
    """Whether the loop can deal with everything that happens."""
    return not plan.pauses and all(map(_strikes_plainly, plan.failures))


def _strikes_plainly(failure: JobFailure) -> bool:
    return failure.effect in ("crash", "hang") and not failure.wrong_diagnosis


def sprint(job: Job) -> None:
    """Go from failure to failure until something comes up; the job is training, at the start of a step.

    Parameters
    ----------
    job
        It is left as it would be at the start of a later stretch of training.
    """
    if job.partial is not None or job.pending or job.again or job.found or len(job.lemon_streams) > 1:
        return
    if job.silent or len(job.timers) > 1:
        return
    plan, arrivals, fleet, history = job.plan, job.arrivals, job.fleet, job.history
    pace = pace_now(job, 0)
    table = timetable(job, pace, job.now)
    step_time, (first, every, blocking, persist) = pace.step, table.saves[0]
    if first != every or job.busy[0] > job.now:
        return
    cycle = every * step_time + blocking
    load = plan.phases[0].tiers[0].load
    exposed, total, simple = job.exposed, job.total, _is_simple(job.plan)
    swap = plan.hot.swap.median
    if plan.hot.swap.sigma and any(failure.machine_share for failure in plan.failures):
        return
    seconds, counts = job.ledger.seconds, job.counts
    sources, repairs, draws = job.sources, fleet.repairs, fleet.draws
    lemon_stream = job.lemon_streams[0] if job.lemon_streams else None
    warm, hot, hot_size = plan.warm.size > 0, fleet.hot, plan.hot.size
    keys = {
        failure.name: (("lost_work", failure.name), ("detection", failure.name), ("restart", failure.name))
        for failure in plan.failures
    }
    began_step, recoveries = job.step, 0
    now, step = job.now, job.step
    job_kinds, hot_kinds = fleet.job.kinds, hot.kinds
    saves = 0
    while True:
        time, lemon = arrivals.time, False
        if job.lemon_time < time:
            time, lemon = job.lemon_time, True
        rest = total - step
        if time >= now + ((rest - 1) * step_time + (rest - 1) // every * blocking + step_time):
            break
        # What this failure brings, before anything is touched.
        if lemon:
            assert lemon_stream is not None
            _, failure, marks = lemon_stream
        else:
            what, failure, marks = sources[arrivals.source]
            if not simple and (what != "failure" or not _strikes_plainly(failure)):
                break
        if not marks.rows:
            marks.draw()
        (
            detection, diagnosis, restart, in_place, machines, _, victim, repair, manual, cured,
        ) = marks.rows[-1]  # fmt: skip
        named = detection + diagnosis
        known = time + named
        up = known + (swap if machines else 0.0) + (restart if machines else in_place) + load
        if exposed or not simple:
            place = arrivals.place + 1
            if place >= len(arrivals.times) or arrivals.times[place] < up:
                break
        # Only now: a failure before `known` might bring the job to its spares earlier than that.
        while repairs and repairs[0][0] <= known and not fleet.borrowed:
            back, _, kind = heapq.heappop(repairs)
            pool = fleet.warm if warm and hot.size >= hot_size else hot
            pool.kinds[kind] = pool.kinds.get(kind, 0) + 1
            pool.size += 1
            fleet.idle_moments += back
        if (
            machines > 1
            or (machines and (hot.size < 1 or known + repair <= known))  # the shop may be done at once
            or fleet.borrowed
            or fleet.missing
            or job.replaced
        ):
            break
        # It strikes.
        if job.strikes >= hopeless.MAX_FAILURES or time > job.limit:
            break
        job.strikes += 1
        marks.rows.pop()
        if lemon:
            assert lemon_stream is not None
            lemon_stream[0].pop()
            job.lemon_time = lemon_stream[0].time
        else:
            arrivals.pop()
        name = failure.name
        counts[name] += 1
        # What is left of the stretch of training.
        passed = time - now
        turns = int(passed / cycle)
        done = turns * every + min(int((passed - turns * cycle) / step_time), every)
        if done >= rest:
            done = rest - 1
        while done * step_time + done // every * blocking > passed:
            done -= 1
        while done < rest - 1 and (done + 1) * step_time + (done + 1) // every * blocking <= passed:
            done += 1
        partial = passed - (done * step_time + done // every * blocking)
        if partial >= step_time:
            over = partial - step_time
            done, partial = done + 1, 0.0
            ahead = 0.0 if done % every else blocking
            seconds["checkpoint", "checkpoint"] = seconds.get(("checkpoint", "checkpoint"), 0.0) + (
                min(over, ahead) - ahead
            )
        saved = done // every
        kept = 0
        if saved:
            blocked = saved * blocking
            if blocked:
                seconds["checkpoint", "checkpoint"] = seconds.get(("checkpoint", "checkpoint"), 0.0) + blocked
            newest = saved * every
            ends = (newest - 1) * step_time + (newest - 1) // every * blocking + step_time + blocking
            if now + ends + persist <= time:
                kept = newest
            else:
                saved -= 1
                kept = newest - every
            saves += saved
        lost_key, detection_key, restart_key = keys[name]
        lost = partial + (done - kept) * step_time
        seconds[lost_key] = seconds.get(lost_key, 0.0) + lost
        step += kept
        if kept:
            job.stuck = 0
        else:
            job.stuck += 1
            if job.stuck > hopeless.MAX_STUCK:
                job.now, job.step, job.farthest = time, step, max(job.farthest, step)
                raise hopeless.endless(job)
        # The machine, and the recovery.
        if machines:
            lemons = fleet.lemons
            kind = 0
            if lemons and (lemon or len(job_kinds) == 1 or victim * fleet.job.size >= job_kinds[0]):
                kind = 1
            if job_kinds[kind] == 1:
                del job_kinds[kind]
            else:
                job_kinds[kind] -= 1
            fleet.lemons -= kind
            if manual:
                fleet.counts["manual"] += 1
            fleet.number += 1
            fleet.repair_s += repair
            heapq.heappush(repairs, (known + repair, fleet.number, 0 if cured else kind))
            if kind:
                job.now = time
                plan_lemons(job)
        if named > 0:
            if not exposed:
                _skip(job, known)
            seconds[detection_key] = seconds.get(detection_key, 0.0) + (known - time)
        now = known
        if machines:
            if len(hot_kinds) == 1:
                (kind,) = hot_kinds
            else:
                kind = 0 if draws.even() * hot.size < hot_kinds[0] else 1
            if hot_kinds[kind] == 1:
                del hot_kinds[kind]
            else:
                hot_kinds[kind] -= 1
            hot.size -= 1
            job_kinds[kind] = job_kinds.get(kind, 0) + 1
            fleet.lemons += kind
            fleet.counts["hot"] += 1
            fleet.idle_moments -= now
            if fleet.lemons != job.lemons:
                job.now = now
                plan_lemons(job)
            if swap > 0:
                now = _pass(job, seconds, restart_key, now, swap, exposed)
            if restart > 0:
                now = _pass(job, seconds, restart_key, now, restart, exposed)
        elif in_place > 0:
            now = _pass(job, seconds, restart_key, now, in_place, exposed)
        if load > 0:
            now = _pass(job, seconds, restart_key, now, load, exposed)
        recoveries += 1
        if job.progress is not None:
            job.progress(step / total)
    job.now, job.step = now, step
    job.farthest = max(job.farthest, step)
    if recoveries:
        pace.kept += step - began_step
        history.counts[0] += saves
        history.settle(Save(step, 0, -math.inf))
        job.last, job.saved, job.busy = [step], [step], [-math.inf]
        tier = plan.phases[0].tiers[0].name
        job.recoveries[tier] = job.recoveries.get(tier, 0) + recoveries


def _pass(
    job: Job, seconds: dict[tuple[str, str], float], key: tuple[str, str], now: float, length: float, exposed: bool
) -> float:
    end = now + length
    if not exposed:
        _skip(job, end)
    seconds[key] = seconds.get(key, 0.0) + (end - now)
    return end


def _skip(job: Job, end: float) -> None:
    """Arrivals that do not strike."""
    arrivals = job.arrivals
    while True:
        if arrivals.time <= job.lemon_time:
            if arrivals.time >= end:
                return
            marks = job.sources[arrivals.source][2]
            arrivals.pop()
        else:
            if job.lemon_time >= end:
                return
            stream, _, marks = job.lemon_streams[0]
            stream.pop()
            job.lemon_time = stream.time
        if marks.rows:
            marks.rows.pop()
        else:
            marks.skip()
