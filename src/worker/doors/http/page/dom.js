// Elements: found by their id, and made with what they contain.
export const find = (id) => document.getElementById(id);

export const make = (tag, facts = {}, ...inner) => {
  const element = Object.assign(document.createElement(tag), facts);
  element.append(...inner);
  return element;
};

// A button whose label for screen readers says what it concerns.
export const makeButton = (text, onClick, about = "") => {
  const button = make("button", { type: "button", textContent: text });
  if (about) button.setAttribute("aria-label", `${text}: ${about}`);
  button.addEventListener("click", onClick);
  return button;
};

export const readFile = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.addEventListener("load", () => resolve(reader.result));
  reader.addEventListener("error", () => reject(reader.error));
  reader.readAsDataURL(file);
});
