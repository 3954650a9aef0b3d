import { orderStory } from "./actions.js";

// A token for each visit
export const dynamic = "force-dynamic";

export default function Home() {
  return (
    <form action={orderStory}>
      <h1>Stories</h1>
      <input type="hidden" name="token" value={crypto.randomUUID()} />
      <label>
        About <input name="hero" defaultValue="Ann" maxLength={50} />
      </label>
      <button>Tell</button>
    </form>
  );
}
