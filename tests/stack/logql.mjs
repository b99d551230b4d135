// Prints the queries of standard input, a JSON list, that Grafana's grammar of LogQL cannot parse.
import { readFileSync } from "node:fs";
import { parser } from "@grafana/lezer-logql";

const wrong = (query) => {
  let found = false;
  parser.parse(query).iterate({ enter: (node) => void (found ||= node.type.isError) });
  return found;
};
console.log(JSON.stringify(JSON.parse(readFileSync(0)).filter(wrong)));
