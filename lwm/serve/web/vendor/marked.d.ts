/** The part of marked that the page uses. */
interface Token {
  type: string;
  raw: string;
}
export const marked: {
  use(options: { gfm: boolean; renderer: { html(token: { text: string }): string; checkbox(token: { checked: boolean }): string } }): void;
  parse(source: string, options: { async: false }): string;
  lexer(source: string): Token[];
};
