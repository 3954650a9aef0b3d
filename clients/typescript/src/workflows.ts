// Workflows that are not started yet: what `Client.chain` and the like start, and steps of other workflows.
import { checkNames } from "./names.js";
import type { NewJob, NewStep, NewWorkflow } from "./types.js";

export interface BatchCallbacks {
  onComplete?: NewJob | undefined;
  onSuccess?: NewJob | undefined;
  onFailure?: NewJob | undefined;
}

interface Named {
  name?: string;
}

/** Jobs and workflows one after the other. As a step it has the result of its last step. */
export function chain(steps: NewStep[], options: Named = {}): NewWorkflow {
  checkNames("chain()", options, ["name"]);
  return { type: "chain", steps, ...named(options) };
}

/** Jobs and workflows at once. As a step it has the array of their results. */
export function group(jobs: NewStep[], options: Named = {}): NewWorkflow {
  checkNames("group()", options, ["name"]);
  return { type: "group", jobs, ...named(options) };
}

/** Jobs and workflows at once, and other jobs when all of them have ended, with their results. */
export function batch(jobs: NewStep[], options: BatchCallbacks & Named = {}): NewWorkflow {
  checkNames("batch()", options, ["onComplete", "onSuccess", "onFailure", "name"]);
  const { onComplete, onSuccess, onFailure } = options;
  const callbacks = {
    ...(onComplete === undefined ? {} : { on_complete: onComplete }),
    ...(onSuccess === undefined ? {} : { on_success: onSuccess }),
    ...(onFailure === undefined ? {} : { on_failure: onFailure }),
  };
  return { type: "batch", jobs, callbacks, ...named(options) };
}

/** Jobs and workflows, each after those that it depends on. As a step it has an object of their results by name. */
export function dag<Name extends string>(
  jobs: Record<Name, NewStep>,
  dependsOn: Partial<Record<NoInfer<Name>, NoInfer<Name>[]>>,
  options: Named = {},
): NewWorkflow {
  checkNames("dag()", options, ["name"]);
  const names = Object.keys(jobs) as Name[];
  checkNames("dependsOn of dag()", dependsOn, names);
  const steps = names.map((id): NewStep => {
    const step: NewStep = jobs[id];
    const before: string[] = [...(dependsOn[id] ?? [])];
    const source = step.for_each;
    if (source !== undefined && !before.includes(source)) {
      before.unshift(source);
    }
    return Object.assign({ ...step }, { id, depends_on: before });
  });
  return { type: "dag", steps, ...named(options) };
}

/**
 * A step that runs once for each element of the array that another step returned: in a chain the one before it, in a DAG the
 * one called `of`. Each of its jobs has the element as its last argument. Its result is the array of theirs.
 */
export function forEach(step: NewStep, of = "previous"): NewStep {
  return { ...step, for_each: of };
}

function named({ name }: Named): Named {
  return name === undefined ? {} : { name };
}
