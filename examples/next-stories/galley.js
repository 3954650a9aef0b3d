// The client of the web server, which has the key: a page in a browser never sees it.
import { Client } from "galley-jobs";

export const galley = new Client();
