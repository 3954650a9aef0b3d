import { Story } from "./story.js";

export default async function Page({ params }) {
  const { id } = await params;
  return <Story id={id} />;
}
