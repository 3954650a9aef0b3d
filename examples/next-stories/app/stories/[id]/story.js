"use client";
import { useEffect, useState } from "react";

/** The story as far as it is told. Another attempt begins from the start. */
export function Story({ id }) {
  const [{ words, end }, set] = useState({ words: [] });
  useEffect(() => {
    const output = new EventSource(`/stories/${id}/output`);
    let known;
    output.addEventListener("chunk", ({ data }) => {
      const { attempt, chunk } = JSON.parse(data);
      const isNew = attempt !== known;
      known = attempt;
      set(({ words }) => ({ words: isNew ? [chunk] : [...words, chunk] }));
    });
    output.addEventListener("end", ({ data }) => {
      output.close();
      set(({ words }) => ({ words, end: JSON.parse(data).state }));
    });
    return () => output.close();
  }, [id]);
  return (
    <>
      <h1>Story</h1>
      <p id="story">{words.join(" ")}</p>
      <p id="state">{end ?? "is told"}</p>
      <a href="/">Another one</a>
    </>
  );
}
