// The description of the API, /openapi.json, for people.

const made = (name, text = "", attributes = {}) => {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

function kindOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.length ? schema.enum.map((value) => JSON.stringify(value)).join(" or ") : "nothing";
  if ("const" in schema) return JSON.stringify(schema.const);
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (choices) return [...new Set(choices.map(kindOf))].filter((kind) => kind !== "null").join(" or ");
  if (schema.type === "array") return `list of ${kindOf(schema.items ?? {})}`;
  const bounds = { from: "minimum", above: "exclusiveMinimum", to: "maximum", below: "exclusiveMaximum" };
  const range = Object.entries(bounds).filter(([, key]) => key in schema && Math.abs(schema[key]) <= Number.MAX_SAFE_INTEGER)
    .map(([word, key]) => `${word} ${schema[key]}`); // larger numbers are rounded by JavaScript: they would be wrong here
  return [schema.type ?? "anything", ...range].join(" ");
}

function table(schema) {
  const fields = made("table");
  const head = made("tr");
  head.append(...["field", "what it takes", ""].map((text) => made("th", text, { scope: "col" })));
  fields.append(head);
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const row = made("tr");
    const needed = schema.required?.includes(name) ? "needed" : "";
    const [first] = (field.anyOf ?? []).filter((one) => one.description);
    const title = made("th", "", { scope: "row" });
    title.append(...name.split(/(?<=_)/).flatMap((word) => [word, made("wbr")])); // where a narrow page may break it
    row.append(title, made("td", kindOf(field)));
    row.append(made("td", [needed, field.description ?? first?.description].filter(Boolean).join("; ")));
    fields.append(row);
  }
  return fields;
}

async function start() {
  const api = await (await fetch("/openapi.json")).json();
  document.getElementById("title").textContent = api.info.title;
  const sections = [];
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = made("section", "", { class: "operation", id: operation.operationId });
      section.append(made("h2", `${method.toUpperCase()} ${path}`), made("p", operation.summary));
      const [content] = Object.entries(operation.requestBody?.content ?? {});
      if (content) {
        const [kind, { schema }] = content;
        const resolved = schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
        const wide = made("div", "", { class: "wide", tabindex: "0", role: "region", "aria-label": `Fields of ${path}` });
        wide.append(table(resolved));
        section.append(made("p", `Body: ${kind}`), wide);
      }
      sections.push(section);
    }
  }
  document.getElementById("operations").replaceChildren(...sections);
}

start().catch((error) => {
  document.getElementById("operations").textContent = `The description cannot be read: ${error.message}`;
});
