"use server";
import { redirect } from "next/navigation";
import { galley } from "../galley.js";

/** Orders a story. A form that is sent twice orders one: its token is the job's idempotency key. */
export async function orderStory(form) {
  const [hero, token] = [String(form.get("hero") || "Ann"), String(form.get("token"))];
  const retry = { max_attempts: 5, initial_interval: "PT1S" };
  const job = await galley.enqueue("story.tell", [hero], { queue: "stories", retry, idempotencyKey: token });
  redirect(`/stories/${job.id}`);
}
