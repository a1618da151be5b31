/** The part of htm's standalone build of Preact that the page uses. */
type Update<S> = (next: S | ((previous: S) => S)) => void;
export function html(strings: TemplateStringsArray, ...values: unknown[]): any;
export function render(tree: unknown, parent: Element): void;
export function useState<S>(initial: S): [S, Update<S>];
export function useRef<T>(initial: T): { current: T };
export function useEffect(effect: () => void | (() => void), inputs?: unknown[]): void;
export function useLayoutEffect(effect: () => void | (() => void), inputs?: unknown[]): void;
export function useCallback<F extends Function>(call: F, inputs: unknown[]): F;
